// Small pictures of numbers, drawn as SVG. Each says in words what it shows.

import { h, s } from "./dom.js";

const LEAST = 30; // samples that a chart has room for; with more it grows, one unit a sample
const HEIGHT = 40;
const HEADROOM = 1.15; // above the highest value, where the scale is written

/** Lines over the last two minutes. `lines`: [{ name, style: "area" | "line" }]; `say(number)`: as text. */
export class LineChart {
  constructor(title, lines, say) {
    this.lines = lines;
    this.say = say;
    this.title = title;
    this.now = h("span", { class: "now" }, "–");
    this.top = h("span", { class: "top" });
    this.svg = s("svg", { preserveAspectRatio: "none", role: "img" });
    const key =
      lines.length > 1 &&
      h("p", { class: "key" }, ...lines.map(({ name, style }) => h("span", { class: style }, name)));
    this.element = h(
      "figure",
      { class: "chart" },
      h("figcaption", {}, title, this.now),
      h("div", { class: "plot" }, this.svg, this.top),
      key,
    );
  }

  /** `series`: for each line its values, oldest first, null where nothing is known. */
  update(series) {
    const values = series.flat().filter((value) => value !== null);
    const top = roundUp(Math.max(1, ...values) * HEADROOM);
    this.top.textContent = this.say(top);
    const width = Math.max(LEAST, series[0].length - 1);
    this.svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    this.svg.replaceChildren(
      ...this.lines.flatMap(({ style }, index) => draw(series[index], style, top, width)).reverse(),
    );
    const latest = series.map((each) => each.at(-1) ?? null);
    this.now.textContent = latest[0] === null ? "–" : this.say(latest[0]);
    this.svg.setAttribute("aria-label", this.#words(series, latest));
  }

  #words(series, latest) {
    const parts = this.lines.map(({ name }, index) => {
      const known = series[index].filter((value) => value !== null);
      if (known.length === 0) return `${name}: nothing known yet`;
      const now = latest[index] === null ? "unknown" : this.say(latest[index]);
      return `${name}: now ${now}, between ${this.say(Math.min(...known))} and ${this.say(Math.max(...known))}`;
    });
    return `${this.title} over the last two minutes. ${parts.join("; ")}.`;
  }
}

/** A share of a whole. */
export class Meter {
  constructor(title) {
    this.title = title;
    this.now = h("span", { class: "now" }, "–");
    this.fill = s("rect", { class: "fill", height: "1", width: "0" });
    this.svg = s("svg", { viewBox: "0 0 100 1", preserveAspectRatio: "none", role: "img" }, this.fill);
    this.note = h("p", { class: "hint" });
    this.element = h("figure", { class: "meter" }, h("figcaption", {}, title, this.now), this.svg, this.note);
  }

  /** `share`: 0…1, or null where it is not known. */
  update(share, text, note) {
    this.fill.setAttribute("width", String(100 * (share ?? 0)));
    this.now.textContent = text;
    this.note.textContent = note;
    this.svg.setAttribute("aria-label", `${this.title}: ${text}. ${note}`);
  }
}

const STEPS = [1, 1.2, 1.5, 2, 3, 4, 5, 6, 8, 10];

/** The least round number that is not below the value. */
export function roundUp(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return STEPS.map((step) => step * power).find((step) => step >= value);
}

function draw(values, style, top, width) {
  const left = width - values.length + 1;
  const points = values.map((value, index) =>
    value === null ? null : [left + index, HEIGHT - 1 - (Math.min(value, top) / top) * (HEIGHT - 3)],
  );
  const runs = [[]];
  for (const point of points) {
    if (point) runs.at(-1).push(point);
    else if (runs.at(-1).length > 0) runs.push([]);
  }
  const line = (run) => run.map((point) => point.join(" ")).join(" L ");
  return runs
    .filter((run) => run.length > 0)
    .flatMap((run) => [
      s("path", { class: `stroke ${style}`, d: `M ${line(run.length > 1 ? run : [run[0], run[0]])}` }),
      ...(style === "area"
        ? [s("path", { class: "below", d: `M ${run[0][0]} ${HEIGHT} L ${line(run)} L ${run.at(-1)[0]} ${HEIGHT} Z` })]
        : []),
    ]);
}
