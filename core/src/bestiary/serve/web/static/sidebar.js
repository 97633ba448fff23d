// The list of conversations, and their way into and out of files.

import { LARGEST_FILE } from "./conversations.js";
import { byId, h, iconButton } from "./dom.js";
import { plural } from "./format.js";

/** close(): the list may lie over the page; put it away. notice({ text }): say something. */
export class Sidebar {
  constructor({ chat, store, close, notice, focusComposer }) {
    Object.assign(this, { chat, store, close, notice, focusComposer });
    this.list = byId("conversations");
    byId("new-chat").addEventListener("click", () => this.startNew());
    byId("export").addEventListener("click", () => this.#export());
    byId("import").addEventListener("click", () => byId("import-file").click());
    byId("import-file").addEventListener("change", (event) => this.#import(event.target));
    addEventListener("storage", () => this.show()); // another tab
    for (const name of ["shown", "list"]) chat.addEventListener(name, () => this.show());
    this.show();
  }

  startNew() {
    this.chat.startNew();
    this.close();
    this.focusComposer();
  }

  show() {
    const entries = this.store.list();
    byId("export").disabled = entries.length === 0;
    byId("no-conversations").hidden = entries.length > 0;
    const focused = this.list.contains(document.activeElement) ? document.activeElement.dataset.id : null;
    this.list.replaceChildren(...entries.map((entry) => this.#row(entry)));
    if (focused) (this.list.querySelector(`[data-id="${focused}"]`) ?? byId("new-chat")).focus();
  }

  #row({ id, title }) {
    const shown = id === this.chat.conversation.id;
    const name = title || "Untitled";
    return h(
      "li",
      { class: shown ? "current" : null },
      h(
        "button",
        {
          type: "button",
          class: "title",
          "data-id": id,
          title: name,
          "aria-current": shown ? "true" : null,
          onclick: () => this.#open(id),
        },
        name,
        this.chat.isAnswering(id) &&
          h("span", { class: "live" }, h("span", { class: "hidden-text" }, " is being answered")),
      ),
      iconButton("trash", `Delete “${name}”`, () => this.chat.remove(id), { "data-id": `${id} delete` }),
    );
  }

  #open(id) {
    this.chat.open(id);
    this.close();
  }

  #export() {
    const address = URL.createObjectURL(new Blob([this.store.exported()], { type: "application/json" }));
    h("a", { href: address, download: `bestiary-conversations-${new Date().toISOString().slice(0, 10)}.json` }).click();
    setTimeout(() => URL.revokeObjectURL(address), 1000);
  }

  async #import(input) {
    const [file] = input.files;
    input.value = "";
    if (!file) return;
    try {
      if (file.size > LARGEST_FILE) throw new Error("The file is larger than 16 MB.");
      const number = this.store.imported(await file.text());
      this.notice({ text: `${plural(number, "conversation")} imported.` });
    } catch (error) {
      this.notice({ text: error.message });
    }
    this.show();
  }
}
