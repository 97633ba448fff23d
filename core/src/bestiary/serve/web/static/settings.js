// How tokens are chosen. An empty field is not sent: the server's default holds, and stands there in grey.

import { byId, h, iconButton } from "./dom.js";
import { read, write } from "./storage.js";

const KEPT = "bestiary.sampling";

// Limits are the server's. `slide`: where a slider is of use, its range.
const FIELDS = [
  {
    name: "temperature",
    label: "Temperature",
    min: 0,
    max: 100,
    slide: [0, 2, 0.05],
    hint: "0 always takes the likeliest token; more is bolder.",
  },
  {
    name: "top_p",
    label: "Top p",
    min: 0,
    max: 1,
    slide: [0.01, 1, 0.01],
    hint: "Only the likeliest tokens that make up this share.",
  },
  {
    name: "top_k",
    label: "Top k",
    min: 0,
    max: 2 ** 31 - 1,
    whole: true,
    hint: "Only this many of the likeliest tokens; 0 for all.",
  },
  {
    name: "min_p",
    label: "Min p",
    min: 0,
    max: 1,
    slide: [0, 1, 0.01],
    hint: "Only tokens at least this likely beside the likeliest.",
  },
  {
    name: "max_tokens",
    label: "Longest answer",
    min: 1,
    max: 2 ** 31 - 1,
    whole: true,
    hint: "In tokens. Empty: as long as the context allows.",
    none: "no limit",
  },
  {
    name: "seed",
    label: "Seed",
    min: -(2 ** 53 - 1),
    max: 2 ** 53 - 1,
    whole: true,
    hint: "The same seed gives the same answer.",
    none: "random",
  },
  {
    name: "presence_penalty",
    label: "Presence penalty",
    min: -2,
    max: 2,
    slide: [-2, 2, 0.1],
    hint: "Against tokens that have occurred.",
  },
  {
    name: "frequency_penalty",
    label: "Frequency penalty",
    min: -2,
    max: 2,
    slide: [-2, 2, 0.1],
    hint: "The more, the more often they occurred.",
  },
  {
    name: "repetition_penalty",
    label: "Repetition penalty",
    min: 0,
    max: 100,
    slide: [0.5, 2, 0.05],
    hint: "Over 1 also against the question's own words.",
  },
];

export class Settings {
  #rows = new Map();

  constructor() {
    const kept = read(KEPT, {});
    for (const field of FIELDS) this.#rows.set(field.name, new Row(field, kept[field.name] ?? "", () => this.#keep()));
    byId("sampling").append(...[...this.#rows.values()].map(({ element }) => element));
    this.stop = byId("stop-strings");
    this.extra = byId("extra-fields");
    this.stop.value = kept.stop ?? "";
    this.extra.value = kept.extra ?? "";
    for (const area of [this.stop, this.extra]) area.addEventListener("input", () => this.#keep());
    byId("reset-sampling").addEventListener("click", () => this.#reset());
    this.#keep();
  }

  /** `defaults`: what the server does where a request says nothing. */
  setDefaults(defaults) {
    for (const [name, row] of this.#rows) row.setDefault(defaults?.[name] ?? null);
  }

  /** The fields of a request. */
  request() {
    const chosen = [...this.#rows].filter(([, row]) => row.text !== "").map(([name, row]) => [name, Number(row.text)]);
    const stop = this.stop.value
      .split("\n")
      .filter(Boolean)
      .map((line) => line.replaceAll("\\n", "\n"));
    return { ...Object.fromEntries(chosen), ...(stop.length > 0 ? { stop } : {}), ...this.#extra() };
  }

  /** The first field whose value cannot be sent, or null. */
  get wrong() {
    return (
      [...this.#rows.values()]
        .map(({ box }) => box)
        .concat(this.extra)
        .find((box) => !box.checkValidity()) ?? null
    );
  }

  #extra() {
    const text = this.extra.value.trim();
    return text && this.extra.checkValidity() ? JSON.parse(text) : {};
  }

  #reset() {
    for (const row of this.#rows.values()) row.set("");
    this.stop.value = "";
    this.extra.value = "";
    this.#keep();
  }

  #keep() {
    this.extra.setCustomValidity(isObject(this.extra.value) ? "" : 'Not a JSON object, such as {"tools": []}.');
    const values = [...this.#rows].map(([name, row]) => [name, row.text]);
    const changed = values.some(([, text]) => text !== "") || this.stop.value !== "" || this.extra.value !== "";
    byId("reset-sampling").disabled = !changed;
    byId("changed").hidden = !changed;
    write(KEPT, { ...Object.fromEntries(values), stop: this.stop.value, extra: this.extra.value });
  }
}

/** A number with its slider, and a way back to the default. */
class Row {
  constructor({ name, label, min, max, whole, slide, hint, none }, text, changed) {
    this.none = none ?? "default";
    this.box = h("input", {
      id: `field-${name}`,
      type: "number",
      min,
      max,
      step: whole ? 1 : "any",
      inputmode: whole ? "numeric" : "decimal",
      "aria-describedby": `hint-${name}`,
    });
    this.slider =
      slide &&
      h("input", { type: "range", min: slide[0], max: slide[1], step: slide[2], "aria-label": `${label}, slider` });
    this.back = iconButton("again", `${label}: back to the default`, () => {
      this.set("");
      this.box.focus();
      changed();
    });
    this.box.addEventListener("input", () => {
      this.#follow();
      changed();
    });
    this.slider?.addEventListener("input", () => {
      this.set(this.slider.value);
      changed();
    });
    this.element = h(
      "div",
      { class: "field" },
      h("div", { class: "row" }, h("label", { for: this.box.id }, label), this.back, this.box),
      this.slider,
      h("p", { class: "hint", id: `hint-${name}` }, hint),
    );
    this.default = null;
    this.set(text);
  }

  /** "" where nothing is chosen. A number that the browser cannot read counts as chosen, and as wrong. */
  get text() {
    return this.box.value;
  }

  set(text) {
    this.box.value = text;
    this.#follow();
  }

  setDefault(value) {
    this.default = value;
    this.#follow();
  }

  #follow() {
    const chosen = this.box.value !== "";
    this.box.placeholder = this.default === null ? this.none : String(this.default);
    this.back.hidden = !chosen;
    this.element.classList.toggle("chosen", chosen);
    if (this.slider) this.slider.value = chosen ? this.box.value : (this.default ?? this.slider.min);
  }
}

function isObject(text) {
  if (text.trim() === "") return true;
  try {
    const value = JSON.parse(text);
    return typeof value === "object" && value !== null && !Array.isArray(value);
  } catch {
    return false;
  }
}
