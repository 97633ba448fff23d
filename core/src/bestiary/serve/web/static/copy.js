// Copying to the clipboard, with an answer that can be seen and heard.

import { announce } from "./announce.js";
import { h, icon, iconButton } from "./dom.js";

const SHOWN = 1500; // milliseconds

/** A button that copies what `text()` gives when it is pressed. */
export function copyButton(text, label) {
  const button = iconButton("copy", label, async () => {
    const done = await copy(text());
    button.replaceChildren(icon(done ? "check" : "close"));
    announce(done ? "Copied" : "Copying was refused by the browser");
    setTimeout(() => button.replaceChildren(icon("copy")), SHOWN);
  });
  return button;
}

/** Whether the text is on the clipboard now. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyByHand(text); // without https browsers offer no clipboard, except on this machine itself
  }
}

function copyByHand(text) {
  const field = h("textarea", { class: "hidden-text", readonly: true });
  const before = document.activeElement;
  field.value = text;
  document.body.append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  before?.focus();
  return done;
}
