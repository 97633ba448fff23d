// What is known of the server: its state, its card, its models, its last two minutes. Asked once a second while the
// page is visible or somebody waits, and not at all while an API key is missing.
//
// Events: "change" (state, info or models differ), "sample" (history has grown), "looked" (it was asked again).

import { History } from "./history.js";

const PERIOD = 1000; // milliseconds
const PERIOD_WITHOUT_STATS = 10_000;
const WAITING = new Set(["connecting", "starting", "restarting"]);

export class Server extends EventTarget {
  /** "starting", "ready", "stalled", "restarting", "failed", "draining", "closed" as the server says; "connecting",
   *  "unreachable", "locked" (an API key is missing) and "unknown" (it gives no statistics) as this page sees it. */
  state = "connecting";
  info = null;
  models = [];
  history = new History();
  #timer = 0;
  #polling = false;
  #waiting = 0;
  #asked = false;
  #restarts = null;

  constructor(api) {
    super();
    this.api = api;
    document.addEventListener("visibilitychange", () => this.#next(0));
    api.addEventListener("unlocked", () => this.#next(0));
  }

  start() {
    this.#next(0);
  }

  /** Returns when a request makes sense: at once, or when the model has been loaded. */
  async ready(signal) {
    while (WAITING.has(this.state)) await this.look(signal);
  }

  /** Returns when the server has been asked again. Rejects where the signal is aborted. */
  async look(signal) {
    this.#waiting += 1;
    this.#next(PERIOD);
    try {
      signal.throwIfAborted();
      await new Promise((resolve, reject) => {
        this.addEventListener("looked", resolve, { once: true });
        signal.addEventListener("abort", () => reject(signal.reason), { once: true });
      });
    } finally {
      this.#waiting -= 1;
    }
  }

  #next(delay) {
    clearTimeout(this.#timer);
    if (!document.hidden || this.#waiting > 0) this.#timer = setTimeout(() => this.#poll(), delay);
  }

  async #poll() {
    if (this.#polling) return;
    this.#polling = true;
    try {
      const stats = await this.api.stats();
      this.history.add(stats);
      await this.#at(stats.state, stats.restarts);
      this.dispatchEvent(new Event("sample"));
    } catch (error) {
      this.history.interrupt();
      await this.#failed(error);
    }
    this.#polling = false;
    this.dispatchEvent(new Event("looked"));
    if (this.state !== "locked") this.#next(this.state === "unknown" ? PERIOD_WITHOUT_STATS : PERIOD);
  }

  async #failed(error) {
    if (error.status === 401) {
      await this.#at("locked");
      if (this.#asked) return;
      this.#asked = true;
      this.api.unlock();
    } else if (error.status === 404 || error.status === 403) {
      await this.#at("unknown");
    } else {
      await this.#at("unreachable");
    }
  }

  async #at(state, restarts = null) {
    const known = state === this.state && (restarts === null || restarts === this.#restarts);
    if (known && (this.info?.model || !["ready", "unknown"].includes(state)) && state !== "starting") return;
    this.state = state;
    this.#restarts = restarts ?? this.#restarts;
    if (state !== "unreachable" && state !== "locked") await this.#learn();
    this.dispatchEvent(new Event("change"));
  }

  /** The card and the models; each keeps its last value where the server does not tell. */
  async #learn() {
    const [info, models] = await Promise.allSettled([this.api.info(), this.api.models()]);
    if (info.status === "fulfilled") this.info = info.value;
    if (models.status === "fulfilled") this.models = models.value.data ?? [];
  }
}
