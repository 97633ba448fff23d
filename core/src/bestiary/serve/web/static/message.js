// One message as an element, which follows the message while it grows.

import { copyButton } from "./copy.js";
import { h, icon, iconButton } from "./dom.js";
import { digits, plural, seconds } from "./format.js";
import { MarkdownView } from "./markdown.js";

const SAID = { user: "You", assistant: "Answer", tool: "Result of a tool" };
const STOPPED = { length: "the limit of tokens was met", stopped: "stopped", content_filter: "stopped by a filter" };

/** `actions`: { regenerate, edit, goOn, answerCalls }; offered on the last turn only, and not while it is live. */
export class MessageView {
  constructor(message, actions) {
    this.message = message;
    this.actions = actions;
    this.body = h("div", { class: "body" });
    this.foot = h("footer");
    this.element = h(
      "article",
      { class: `message ${message.role}` },
      h("h2", { class: "hidden-text" }, SAID[message.role]),
      this.body,
      this.foot,
    );
    if (message.role === "assistant") this.#prepare();
    else this.#say();
  }

  /** Show the message as it is now. */
  update({ live, last }) {
    if (this.message.role === "assistant") this.#answer(live, last);
    this.foot.replaceChildren(...this.#buttons(live, last));
    this.element.classList.toggle("last", last);
  }

  /** Only what a growing text changes. */
  grow() {
    const { content, reasoning, tool_calls: calls } = this.message;
    if (reasoning) this.#think();
    this.content.update(content);
    if (calls.length > 0) this.calls.replaceChildren(...calls.map((call) => callCard(call)));
    this.waiting.hidden = Boolean(content || calls.length > 0);
  }

  #say() {
    const { role, name, content } = this.message;
    if (role === "tool") this.body.append(h("p", { class: "quiet" }, "Result of ", h("code", {}, name ?? "the tool")));
    this.body.append(h(role === "tool" ? "pre" : "p", { class: "said" }, content));
  }

  #prepare() {
    const thought = h("div", { class: "thought" });
    this.summary = h("summary", {});
    this.reasoning = h("details", { class: "reasoning", hidden: true }, this.summary, thought);
    this.thought = new MarkdownView(thought);
    this.content = new MarkdownView(h("div", { class: "prose" }));
    this.calls = h("div", { class: "calls" });
    this.waiting = h(
      "p",
      { class: "waiting" },
      h("span", { class: "hidden-text" }, "The answer is on its way"),
      h("i", {}),
      h("i", {}),
      h("i", {}),
    );
    this.end = h("div");
    this.body.append(this.reasoning, this.content.root, this.calls, this.waiting, this.end);
  }

  #think() {
    const { reasoning, content, timing } = this.message;
    this.reasoning.hidden = false;
    this.thought.update(reasoning);
    const time = timing.thinking === undefined ? "" : ` for ${seconds(timing.thinking)}`;
    this.summary.textContent = content || this.message.finish ? `Thought${time}` : "Thinking…";
  }

  #answer(live, last) {
    this.grow();
    const { tool_calls: calls, error } = this.message;
    this.waiting.hidden ||= !live;
    this.element.setAttribute("aria-busy", String(live));
    if (!live && last && calls.length > 0) this.calls.replaceChildren(callForm(calls, this.actions.answerCalls));
    this.end.replaceChildren(...(error ? [errorCard(error, last && this.actions.regenerate)] : []));
  }

  #buttons(live, last) {
    const { role, content, error } = this.message;
    if (live || role === "tool") return [];
    const { regenerate, edit, goOn } = this.actions;
    const mine = role === "user";
    return [
      content && copyButton(() => content, mine ? "Copy what you wrote" : "Copy the answer"),
      mine && last && iconButton("edit", "Edit and ask again (e)", edit, { class: "icon-button edit" }),
      !mine && last && !error && iconButton("again", "Answer again (r)", () => regenerate()),
      !mine &&
        last &&
        this.#mayGoOn() &&
        h("button", { type: "button", class: "quiet-button", onclick: goOn }, "Go on"),
      !mine && h("span", { class: "facts" }, this.#facts()),
    ].filter(Boolean);
  }

  #mayGoOn() {
    return this.message.finish === "length" && this.message.content !== "" && this.message.reasoning === "";
  }

  #facts() {
    const { usage, timing, finish } = this.message;
    return [
      STOPPED[finish],
      usage && plural(usage.completion, "token"),
      timing.rate && `${digits(timing.rate)} tokens/s`,
      timing.first !== undefined && `first after ${seconds(timing.first)}`,
      usage?.cached > 0 && `${plural(usage.cached, "prompt token")} from the cache`,
    ]
      .filter(Boolean)
      .join(" · ");
  }
}

/** What went wrong, under which code it is documented, and what to do about it. */
export function errorCard({ code, message, fix, retryAfter }, again = null) {
  return h(
    "div",
    { class: "error", role: "group", "aria-label": "Error" },
    icon("alert"),
    h(
      "div",
      {},
      h("p", {}, message),
      fix && h("p", {}, fix),
      retryAfter && h("p", {}, `The server asks to wait ${seconds(Number(retryAfter))}.`),
      h("p", { class: "error-code" }, h("code", {}, code)),
      again && h("button", { type: "button", class: "button", onclick: () => again() }, "Try again"),
    ),
  );
}

function callCard({ name, arguments: text }, ...more) {
  return h(
    "section",
    { class: "call", "aria-label": `Call of ${name}` },
    h("p", {}, icon("tool"), h("code", {}, name || "…")),
    h("pre", { tabindex: "0", role: "region", "aria-label": "Arguments" }, pretty(text)),
    ...more,
  );
}

/** The calls of a finished answer, with a place for what each gives back: this page runs no tool by itself. */
function callForm(calls, answerCalls) {
  const fields = calls.map(({ name }) =>
    h("textarea", { rows: "2", "aria-label": `Result of ${name}`, placeholder: "What the tool gives back" }),
  );
  const submit = (event) => {
    event.preventDefault();
    answerCalls(fields.map((field) => field.value));
  };
  return h(
    "form",
    { onsubmit: submit },
    ...calls.map((call, index) => callCard(call, fields[index])),
    h("button", { class: "button" }, calls.length > 1 ? "Send the results" : "Send the result"),
  );
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text; // still on its way, or no JSON at all
  }
}
