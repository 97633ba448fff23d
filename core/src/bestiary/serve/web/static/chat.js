// What can be done with conversations. Each may have one answer on its way, also while another is looked at.
//
// Events: "shown" (another conversation, or its messages changed), "grown" (detail: the message whose text grew),
// "list" (the list of conversations changed), "notice" (detail: { text, undo? }).

import { announce, announceAnswer } from "./announce.js";
import { Answer, emptyAnswer, forRequest } from "./answer.js";
import { newConversation, titleOf } from "./conversations.js";

const NOT_READY = "ENGINE_NOT_READY";
const FULL = "There is no room left in this browser: the conversation is not kept. Export some, then delete them.";

export class Chat extends EventTarget {
  conversation = newConversation();
  #answering = new Map(); // conversation id → { conversation, controller }
  #leaving = false;

  /** request(): the fields of a request that are chosen elsewhere (model, sampling). */
  constructor({ api, server, store, request }) {
    super();
    Object.assign(this, { api, server, store, request });
    const [latest] = store.list();
    if (latest) this.open(latest.id);
  }

  isAnswering = (id = this.conversation.id) => this.#answering.has(id);

  open(id) {
    this.conversation = this.#answering.get(id)?.conversation ?? this.store.open(id) ?? newConversation();
    this.#tell("shown");
  }

  startNew() {
    if (this.conversation.messages.length > 0) this.conversation = newConversation();
    this.#tell("shown");
  }

  remove(id) {
    this.stop(id);
    const removed = this.store.open(id);
    this.store.remove(id);
    if (id === this.conversation.id) this.conversation = newConversation();
    this.#tell("shown");
    this.#tell("list");
    this.#notice(
      "The conversation was deleted.",
      removed &&
        (() => {
          this.#keep(removed);
          this.open(removed.id);
        }),
    );
  }

  /** Take everything out of the conversation but its system prompt. */
  clear() {
    const { conversation } = this;
    if (conversation.messages.length === 0) return;
    this.stop();
    const { messages, title } = conversation;
    this.#change(conversation, { messages: [], title: "" });
    this.#notice("The conversation was cleared.", () => this.#change(conversation, { messages, title }));
  }

  setSystem(system) {
    this.conversation.system = system;
    if (this.conversation.messages.length > 0) this.#keep(this.conversation);
  }

  send(text) {
    if (text.trim() === "" || this.isAnswering()) return;
    this.#ask([...this.conversation.messages, { role: "user", content: text }]);
  }

  /** Another answer in place of the last. */
  regenerate() {
    const { messages } = this.conversation;
    if (messages.length === 0 || this.isAnswering()) return;
    this.#ask(messages.at(-1).role === "assistant" ? messages.slice(0, -1) : messages);
  }

  /** Put the last question in other words; what followed it goes. */
  reword(text) {
    const { messages } = this.conversation;
    const last = messages.findLastIndex(({ role }) => role === "user");
    if (last >= 0 && !this.isAnswering()) this.#ask([...messages.slice(0, last), { role: "user", content: text }]);
  }

  /** Tell the model what the tools it called gave back, in the calls' order. */
  answerCalls(results) {
    const { messages } = this.conversation;
    const calls = messages.at(-1)?.tool_calls ?? [];
    this.#ask([
      ...messages,
      ...calls.map(({ id, name }, index) => ({ role: "tool", tool_call_id: id, name, content: results[index] })),
    ]);
  }

  /** Let an answer that met its limit go on where it stopped. */
  goOn() {
    const message = this.conversation.messages.at(-1);
    if (message?.role === "assistant" && !this.isAnswering()) {
      this.#stream(this.conversation, message, { continue_final_message: true, add_generation_prompt: false });
    }
  }

  stop(id = this.conversation.id) {
    this.#answering.get(id)?.controller.abort();
  }

  /** The page is going away, and with it what is on its way: keep what there is, and not the error that follows. */
  leave() {
    for (const { conversation } of this.#answering.values()) {
      const messages = conversation.messages.map((message) => ({ ...message, finish: message.finish ?? "stopped" }));
      this.store.save({ ...conversation, messages });
    }
    this.#leaving = true;
  }

  /** The browser has brought the page back as it was. */
  comeBack() {
    this.#leaving = false;
  }

  #ask(messages) {
    const message = emptyAnswer();
    this.#stream(this.conversation, message, {}, [...messages, message]);
  }

  async #stream(conversation, message, more, messages = conversation.messages) {
    const controller = new AbortController();
    const said = forRequest({
      ...conversation,
      messages: messages.filter((each) => each !== message || more.continue_final_message),
    });
    Object.assign(message, { finish: null, error: null });
    this.#answering.set(conversation.id, { conversation, controller });
    this.#change(conversation, { messages, title: titleOf({ messages }) });
    announce("Answering");
    const answer = new Answer(message);
    try {
      for await (const chunk of this.#chunks(answer, { messages: said, ...more }, controller.signal)) {
        answer.add(chunk);
        if (conversation === this.conversation) this.dispatchEvent(new CustomEvent("grown", { detail: message }));
      }
      answer.end();
      announceAnswer(message.content);
    } catch (error) {
      answer.fail(error);
      announce(message.error ? `Error: ${message.error.message}` : "Stopped");
    }
    this.#answering.delete(conversation.id);
    this.#change(conversation, {});
  }

  /** What the API streams, from the moment that the engine takes the request. */
  async *#chunks(answer, fields, signal) {
    for (;;) {
      await this.server.ready(signal);
      const body = { ...this.request(), stream_options: { include_usage: true }, ...fields };
      answer.sent(body.model ?? null);
      try {
        yield* this.api.chat(body, signal);
        return;
      } catch (error) {
        if (error.status !== 503 || error.code !== NOT_READY) throw error;
      }
      await this.server.look(signal);
    }
  }

  #change(conversation, changes) {
    Object.assign(conversation, changes, { updated: Date.now() });
    if (conversation === this.conversation) this.#tell("shown");
    this.#keep(conversation);
  }

  /** What is kept of a conversation that is being answered lacks the answer. */
  #keep(conversation) {
    if (this.#leaving) return;
    const messages = conversation.messages.filter(({ finish }) => finish !== null);
    if (messages.length === 0) this.store.remove(conversation.id);
    else if (!this.store.save({ ...conversation, messages })) this.#notice(FULL);
    this.#tell("list");
  }

  #notice(text, undo = null) {
    this.dispatchEvent(new CustomEvent("notice", { detail: { text, undo } }));
  }

  #tell(name) {
    this.dispatchEvent(new Event(name));
  }
}
