// The choice among the server's models: the base model under its names, and its adapters.

import { byId, h } from "./dom.js";
import { read, write } from "./storage.js";

const KEPT = "bestiary.model";

export class ModelChoice {
  constructor(server) {
    this.server = server;
    this.select = byId("model");
    this.select.addEventListener("change", () => write(KEPT, this.select.value));
    server.addEventListener("change", () => this.show());
  }

  /** The model's id; undefined while the list is not there, and the server takes its own. */
  get chosen() {
    return this.select.value || undefined;
  }

  show() {
    const { models } = this.server;
    const ids = models.map(({ id }) => id).join("\n");
    if (ids === this.shown) return;
    this.shown = ids;
    const wanted = this.select.value || read(KEPT, "");
    const adapters = models.filter(({ parent }) => parent);
    const options = (some) => some.map(({ id }) => h("option", { value: id }, id));
    const base = options(models.filter(({ parent }) => !parent));
    this.select.replaceChildren(
      ...base,
      ...(adapters.length > 0 ? [h("optgroup", { label: "With an adapter" }, ...options(adapters))] : []),
    );
    if (models.some(({ id }) => id === wanted)) this.select.value = wanted;
    this.select.disabled = models.length < 2;
    byId("no-model").hidden = models.length > 0;
    this.select.hidden = models.length === 0;
  }
}
