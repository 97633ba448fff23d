// The state of the server: a word beside the model's name, and a banner where the state needs explaining.

import { byId, h, icon } from "./dom.js";
import { seconds } from "./format.js";

// state → [word, kind, what it means and what to do]
const STATES = {
  connecting: ["connecting", "wait", null],
  ready: ["ready", "good", null],
  unknown: ["state unknown", "wait", null],
  starting: [
    "starting",
    "wait",
    "The model is being loaded. Ask already if you like: your message is sent as soon as it is ready.",
  ],
  stalled: [
    "stalled",
    "bad",
    "The engine has made no progress for a while. If it does not recover, the server restarts it; its log says why.",
  ],
  restarting: [
    "restarting",
    "wait",
    "The engine died and is being started again. Answers that were on their way have ended with an error.",
  ],
  failed: [
    "failed",
    "bad",
    "The engine has failed and stays down. The server's log names the cause; start `bestiary serve` again after that.",
  ],
  draining: ["shutting down", "wait", "The server is shutting down: it finishes what it has and takes nothing new."],
  closed: ["closed", "bad", "The server has shut down. Start `bestiary serve` again to go on."],
  unreachable: [
    "no answer",
    "bad",
    "The server does not answer. This page tries again by itself; see whether `bestiary serve` is still running.",
  ],
  locked: ["locked", "bad", "This server asks for an API key."],
};

export class Banner {
  /** unlock(): ask for the API key. */
  constructor(server, unlock) {
    this.server = server;
    this.unlock = unlock;
    this.shown = null;
    server.addEventListener("change", () => this.show());
  }

  /** The banner is a live region: it is written only when what it says has changed. */
  show() {
    const { state, info } = this.server;
    const [word, kind, text] = STATES[state] ?? [state, "wait", `The server says that it is ${state}.`];
    const pill = byId("state");
    pill.className = `state ${kind}`;
    pill.querySelector("span").textContent = word;
    const progress = state === "starting" ? progressOf(info) : "";
    const said = text && `${text}${progress}`;
    if (said === this.shown) return;
    this.shown = said;
    byId("banner").className = `banner ${kind}`;
    byId("banner").replaceChildren(
      ...(said
        ? [icon(kind === "bad" ? "alert" : "clock"), h("p", {}, said), state === "locked" && this.#key()].filter(
            Boolean,
          )
        : []),
    );
  }

  #key() {
    return h("button", { type: "button", class: "button", onclick: () => this.unlock() }, "Enter the key");
  }
}

function progressOf(info) {
  const done = Object.entries(info?.server?.phases ?? {}).map(([name, time]) => `${name} ${seconds(time)}`);
  return done.length > 0 ? ` Done so far: ${done.join(", ")}.` : "";
}
