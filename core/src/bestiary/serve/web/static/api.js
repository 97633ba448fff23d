// The server's HTTP interface: JSON in, JSON or events out, and one kind of error.

import { events } from "./sse.js";
import { forget, read, write } from "./storage.js";

const KEY = "bestiary.key";

/** What the server refused, or that it could not be reached. */
export class ApiError extends Error {
  constructor({ message, code, fix = null, status = null, retryAfter = null }) {
    super(message);
    Object.assign(this, { code, fix, status, retryAfter });
  }

  /** From a body `{"error": {…}}`, which anything between here and the server may have replaced. */
  static from(body, status, retryAfter = null) {
    const error = body?.error ?? {};
    return new ApiError({
      message: error.message ?? `The server answered with status ${status} and no explanation.`,
      code: error.code ?? error.type ?? `HTTP ${status}`,
      fix: error.fix ?? error.details?.fix ?? null,
      status,
      retryAfter,
    });
  }
}

const unreachable = () =>
  new ApiError({
    message: "The server does not answer.",
    code: "UNREACHABLE",
    fix: "See whether `bestiary serve` is still running, then try again.",
  });

/** Event: "unlocked" (there is another key). */
export class Api extends EventTarget {
  #asking = null;

  /** askKey(refused): a promise of the API key that the user enters, or of null. The key lives as long as the tab. */
  constructor(askKey) {
    super();
    this.askKey = askKey;
  }

  models = () => this.#json("v1/models");
  info = () => this.#json("server/info");
  stats = () => this.#json("server/stats");

  /** The chunks of a streamed chat completion. */
  async *chat(body, signal) {
    const response = await this.#call("v1/chat/completions", { ask: true, signal, body: { ...body, stream: true } });
    let complete = false;
    try {
      for await (const { event, data } of events(response.body)) {
        if (data === "[DONE]") return;
        const chunk = JSON.parse(data);
        if (event === "error" || chunk.error)
          throw ApiError.from(chunk.error ? chunk : { error: chunk }, response.status);
        complete ||= Boolean(chunk.choices?.[0]?.finish_reason);
        yield chunk;
      }
    } catch (error) {
      if (error instanceof ApiError || error.name === "AbortError") throw error;
      throw new ApiError({ message: `The answer broke off: ${error.message}`, code: "CONNECTION_LOST" });
    }
    if (!complete) throw new ApiError({ message: "The answer broke off before its end.", code: "CONNECTION_LOST" });
  }

  /** Ask for the key, once for all calls that miss it; whether there is another one now. */
  unlock() {
    this.#asking ??= this.#ask().finally(() => (this.#asking = null));
    return this.#asking;
  }

  async #ask() {
    const key = await this.askKey(Boolean(read(KEY, null, "sessionStorage")));
    if (key === null) return false;
    if (key === "") forget(KEY, "sessionStorage");
    else write(KEY, key, "sessionStorage");
    this.dispatchEvent(new Event("unlocked"));
    return true;
  }

  async #json(path) {
    const response = await this.#call(path, {});
    return response.json();
  }

  async #call(path, { ask = false, body, signal }) {
    for (;;) {
      const response = await this.#fetch(path, body, signal);
      if (response.ok) return response;
      if (response.status === 401 && ask && (await this.unlock())) continue;
      throw ApiError.from(
        await response.json().catch(() => null),
        response.status,
        response.headers.get("retry-after"),
      );
    }
  }

  async #fetch(path, body, signal) {
    const key = read(KEY, null, "sessionStorage");
    const headers = key ? { authorization: `Bearer ${key}` } : {};
    const json = body && {
      method: "POST",
      body: JSON.stringify(body),
      headers: { ...headers, "content-type": "application/json" },
    };
    try {
      return await fetch(new URL(path, document.baseURI), {
        headers,
        ...json,
        signal,
        cache: "no-store",
        credentials: "omit",
      });
    } catch (error) {
      throw error.name === "AbortError" ? error : unreachable();
    }
  }
}
