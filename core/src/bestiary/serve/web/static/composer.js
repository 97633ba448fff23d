// Where a message is written: grows with its text, sends with Enter, stops what is being answered.

import { byId } from "./dom.js";

const DRAFT_HEIGHT = 0.4; // of the window, at most

export class Composer {
  /** problem(): a setting that must be repaired before anything is sent; true when the user has been led to it. */
  constructor(chat, problem) {
    this.chat = chat;
    this.problem = problem;
    this.field = byId("prompt");
    this.button = byId("send");
    this.stop = byId("stop");
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
    this.stop.addEventListener("click", () => chat.stop());
    this.field.addEventListener("input", () => this.#changed());
    this.field.addEventListener("keydown", (event) => this.#key(event));
    chat.addEventListener("shown", () => this.#changed());
    this.#changed();
  }

  focus() {
    this.field.focus();
  }

  #send() {
    if (this.field.value.trim() === "" || this.chat.isAnswering() || this.problem()) return;
    this.chat.send(this.field.value);
    this.field.value = "";
    this.#changed();
  }

  /** On a touch screen Enter is the only way to a new line, and the button is near. */
  #key(event) {
    const touch = matchMedia("(pointer: coarse)").matches;
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || touch) return;
    event.preventDefault();
    this.#send();
  }

  #changed() {
    const live = this.chat.isAnswering();
    const focused = document.activeElement === this.stop || document.activeElement === this.button;
    this.button.hidden = live;
    this.stop.hidden = !live;
    this.button.disabled = this.field.value.trim() === "";
    if (focused) this.field.focus();
    this.field.style.height = "auto";
    this.field.style.height = `${Math.min(this.field.scrollHeight, innerHeight * DRAFT_HEIGHT)}px`;
  }
}
