// The dialog that asks for an API key, the list of keyboard shortcuts, and short notices.

import { byId, h, iconButton } from "./dom.js";

const SHOWN = 10_000; // milliseconds

/** The key that the user enters ("" to forget it), or null where they would rather not. */
export function askKey(refused) {
  const dialog = byId("key-dialog");
  const field = byId("key");
  field.value = "";
  byId("key-refused").hidden = !refused;
  dialog.showModal();
  field.focus();
  return new Promise((resolve) => {
    let key = null;
    const submit = (event) => {
      event.preventDefault();
      key = field.value.trim();
      dialog.close();
    };
    byId("key-form").addEventListener("submit", submit);
    dialog.addEventListener(
      "close",
      () => {
        byId("key-form").removeEventListener("submit", submit);
        field.value = "";
        resolve(key);
      },
      { once: true },
    );
  });
}

/** Buttons with data-close put their dialog away; so does a click beside it. */
export function prepareDialogs() {
  for (const dialog of document.querySelectorAll("dialog")) {
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog || event.target.closest("[data-close]")) dialog.close();
    });
  }
}

/** A line at the bottom that goes by itself, unless the pointer or the focus is on it. */
export function notice({ text, undo = null }) {
  const line = h(
    "div",
    { class: "notice" },
    h("p", {}, text),
    undo &&
      h(
        "button",
        {
          type: "button",
          class: "quiet-button",
          onclick: () => {
            undo();
            line.remove();
          },
        },
        "Undo",
      ),
    iconButton("close", "Put away", () => line.remove()),
  );
  byId("notices").replaceChildren(line);
  const leave = () => (line.matches(":hover, :focus-within") ? setTimeout(leave, SHOWN) : line.remove());
  setTimeout(leave, SHOWN);
}
