// Keys. Single letters work outside of text fields only, and can be switched off: dictation types letters by accident.

import { byId, h } from "./dom.js";
import { read, write } from "./storage.js";

const KEPT = "bestiary.shortcuts";

/** `actions`: [{ key, label, run }]; `escape()`: what Esc does where no dialog is open. */
export function prepareShortcuts(actions, escape) {
  const box = byId("letters");
  box.checked = read(KEPT, true);
  box.addEventListener("change", () => write(KEPT, box.checked));
  byId("shortcuts").append(
    ...actions.flatMap(({ key, label }) => [h("dt", {}, h("kbd", {}, key)), h("dd", {}, label)]),
  );
  document.addEventListener("keydown", (event) => {
    if (event.isComposing || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]"))
      return;
    if (event.key === "Escape") return escape(event);
    const action = actions.find(({ key }) => key === event.key);
    if (!action || !box.checked || writing(event.target)) return;
    event.preventDefault();
    action.run();
  });
}

const writing = (element) => element.matches("textarea, select, input:not([type=checkbox]), [contenteditable]");
