// One answer, put together from the chunks of its stream. The message it writes into is what is kept and sent again.

/** An empty answer. Its `finish` is null while it grows, then what the API says, or "stopped" or "error". */
export function emptyAnswer() {
  return {
    role: "assistant",
    content: "",
    reasoning: "",
    tool_calls: [],
    model: null,
    finish: null,
    error: null,
    usage: null,
    timing: {},
  };
}

export class Answer {
  #begun = performance.now();
  #first = null;

  constructor(message) {
    this.message = message;
  }

  /** The request leaves now: what came before was waiting for the model to be loaded. */
  sent(model) {
    this.message.model = model;
    this.#begun = performance.now();
  }

  add(chunk) {
    if (chunk.usage) this.#usage(chunk.usage);
    const choice = chunk.choices?.[0];
    if (!choice) return;
    const { content, reasoning, reasoning_content: older, tool_calls: calls } = choice.delta ?? {};
    if (content || reasoning || older || calls) this.#seen(Boolean(content || calls));
    this.message.content += content ?? "";
    this.message.reasoning += reasoning ?? older ?? "";
    for (const part of calls ?? []) this.#call(part);
    if (choice.finish_reason) this.message.finish = choice.finish_reason;
  }

  end() {
    const { message } = this;
    message.finish ??= "stop";
    const now = performance.now();
    message.timing.total = (now - this.#begun) / 1000;
    const more = (message.usage?.completion ?? 0) - 1;
    if (this.#first !== null && more > 0 && now > this.#first)
      message.timing.rate = more / ((now - this.#first) / 1000);
  }

  fail(error) {
    this.message.finish = error.name === "AbortError" ? "stopped" : "error";
    if (this.message.finish === "error") {
      const { code = "DEFECT", message, fix = null, status = null, retryAfter = null } = error;
      this.message.error = { code, message, fix, status, retryAfter };
    }
  }

  #usage(usage) {
    this.message.usage = {
      prompt: usage.prompt_tokens,
      completion: usage.completion_tokens,
      cached: usage.prompt_tokens_details?.cached_tokens ?? null,
    };
  }

  #seen(answering) {
    const now = performance.now();
    const { timing, reasoning } = this.message;
    if (this.#first === null) {
      this.#first = now;
      timing.first = (now - this.#begun) / 1000;
    }
    if (answering && reasoning && timing.thinking === undefined) timing.thinking = (now - this.#first) / 1000;
  }

  #call({ index, id, function: named }) {
    const calls = this.message.tool_calls;
    const call = (calls[index ?? calls.length] ??= { id: id ?? `call_${index}`, name: "", arguments: "" });
    call.name += named?.name ?? "";
    call.arguments += named?.arguments ?? "";
  }
}

/** A conversation as the API takes it. What only failed says nothing to the model. */
export function forRequest({ system, messages }) {
  const said = messages.filter(
    (message) => message.role !== "assistant" || message.content || message.tool_calls.length > 0,
  );
  return [...(system.trim() ? [{ role: "system", content: system }] : []), ...said.map(plain)];
}

function plain({ role, content, tool_calls: calls, tool_call_id: id }) {
  if (role === "tool") return { role, content, tool_call_id: id };
  if (role === "user" || calls.length === 0) return { role, content };
  return {
    role,
    content: content || null,
    tool_calls: calls.map((call) => ({
      id: call.id,
      type: "function",
      function: { name: call.name, arguments: call.arguments },
    })),
  };
}
