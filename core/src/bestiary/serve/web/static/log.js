// The conversation that is shown: its messages, the place before there are any, and where it is scrolled to.

import { byId, h, s } from "./dom.js";
import { MessageView } from "./message.js";

const NEAR = 80; // pixels from the end that still count as being there
const SHARE = 6; // a growing text takes at most one part in this many of the time

const EXAMPLES = [
  ["Tell me a tale", "Tell me a short tale of a dragon who is afraid of the dark."],
  ["Explain something", "Explain to a ten-year-old why the sky is blue."],
  ["Help me write", "Write a friendly message that asks a neighbour to turn the music down."],
  ["Write some code", "Write a Python function that says whether a word is a palindrome, with two examples."],
];

export class Log {
  #views = [];
  #frame = 0;
  #notBefore = 0;

  constructor(chat) {
    this.chat = chat;
    this.root = byId("log");
    this.messages = byId("messages");
    this.toEnd = byId("to-end");
    this.actions = {
      regenerate: () => chat.regenerate(),
      edit: () => this.edit(),
      goOn: () => chat.goOn(),
      answerCalls: (results) => chat.answerCalls(results),
    };
    chat.addEventListener("shown", () => this.show());
    chat.addEventListener("grown", (event) => this.#grow(event.detail));
    this.root.addEventListener("scroll", () => this.#follow());
    this.toEnd.addEventListener("click", () => this.scrollToEnd());
  }

  show() {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    const { messages, id } = this.chat.conversation;
    const before = this.#views;
    const switched = this.shownId !== id;
    const atEnd = switched || this.atEnd || messages.length > before.length;
    this.shownId = id;
    this.#views = messages.map((message, index) =>
      before[index]?.message === message ? before[index] : new MessageView(message, this.actions),
    );
    const live = this.chat.isAnswering();
    const asked = messages.findLastIndex(({ role }) => role === "user");
    for (const [index, view] of this.#views.entries()) {
      const latest = index === messages.length - 1;
      view.update({ live: live && latest, last: !live && (latest || index === asked) });
    }
    this.#place(this.#views.length > 0 ? this.#views.map(({ element }) => element) : [this.#welcome()]);
    if (messages.length === 0) this.root.scrollTop = 0;
    else if (atEnd) this.scrollToEnd();
    this.#follow();
  }

  /** Turn the last question into a field. */
  edit() {
    const view = this.#views.findLast(({ message }) => message.role === "user");
    if (!view || this.chat.isAnswering()) return;
    const field = h("textarea", {
      "aria-label": "Your message",
      rows: String(Math.min(12, view.message.content.split("\n").length + 1)),
    });
    field.value = view.message.content;
    const leave = () => {
      form.replaceWith(view.body);
      view.foot.hidden = false;
      view.foot.querySelector(".edit")?.focus();
    };
    const form = h(
      "form",
      {
        class: "edit-form",
        onsubmit: (event) => {
          event.preventDefault();
          leave();
          if (field.value.trim()) this.chat.reword(field.value);
        },
        onkeydown: (event) => {
          if (event.key === "Enter" && !event.shiftKey && !event.isComposing) form.requestSubmit();
          else if (event.key === "Escape") leave();
          else return;
          event.preventDefault();
          event.stopPropagation();
        },
      },
      field,
      h(
        "div",
        { class: "row" },
        h("button", { type: "button", class: "quiet-button", onclick: leave }, "Cancel"),
        h("button", { class: "button" }, "Ask again"),
      ),
    );
    view.body.replaceWith(form);
    view.foot.hidden = true;
    field.focus();
  }

  get atEnd() {
    return this.root.scrollHeight - this.root.scrollTop - this.root.clientHeight < NEAR;
  }

  scrollToEnd() {
    this.root.scrollTop = this.root.scrollHeight;
  }

  /** Put elements in place without touching those that are there already: that would lose focus and selection. */
  #place(elements) {
    for (const [index, element] of elements.entries()) {
      if (this.messages.children[index] !== element)
        this.messages.insertBefore(element, this.messages.children[index] ?? null);
    }
    while (this.messages.children.length > elements.length) this.messages.lastChild.remove();
  }

  #follow() {
    this.toEnd.hidden = this.atEnd;
  }

  /** At most once a frame, and less often where a long text takes long. */
  #grow(message) {
    if (this.#frame) return;
    const draw = () => {
      if (performance.now() < this.#notBefore) {
        this.#frame = requestAnimationFrame(draw);
        return;
      }
      this.#frame = 0;
      const begun = performance.now();
      const { atEnd } = this;
      this.#views.find((view) => view.message === message)?.grow();
      if (atEnd) this.scrollToEnd();
      this.#follow();
      this.#notBefore = performance.now() + (performance.now() - begun) * SHARE;
    };
    this.#frame = requestAnimationFrame(draw);
  }

  #welcome() {
    const example = ([title, text]) =>
      h(
        "li",
        {},
        h(
          "button",
          { type: "button", onclick: () => this.chat.send(text) },
          h("strong", {}, title),
          h("span", {}, text),
        ),
      );
    return h(
      "div",
      { class: "welcome" },
      s("svg", { class: "beast", "aria-hidden": "true" }, s("use", { href: "#beast" })),
      h("h2", {}, "What would you like to ask?"),
      h("p", { class: "quiet" }, "The model runs on this server. Conversations stay in this browser."),
      h("ul", { class: "examples" }, ...EXAMPLES.map(example)),
    );
  }
}
