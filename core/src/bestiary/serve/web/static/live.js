// Live pictures of the server, from /server/stats.

import { LineChart, Meter } from "./charts.js";
import { byId, h, s } from "./dom.js";
import { count, digits, percent, plural, seconds } from "./format.js";

const LATENCIES = [
  ["ttft", "First token"],
  ["itl", "Next token"],
  ["e2e", "Whole answer"],
];
const QUANTILES = ["p50", "p90", "p99"];
const DECADES = [-3, 2]; // the scale of latencies, 1 ms to 100 s, as powers of ten

export class Live {
  constructor(server) {
    this.server = server;
    this.speed = new LineChart("Tokens per second", [{ name: "generated", style: "area" }], digits);
    this.requests = new LineChart(
      "Requests",
      [
        { name: "running", style: "area" },
        { name: "waiting", style: "line" },
      ],
      count,
    );
    this.cache = new Meter("KV cache in use");
    this.prefix = new Meter("Prefix cache hits");
    this.latencies = h("tbody");
    this.totals = h("dl", { class: "facts-list" });
    this.nothing = h("p", { class: "quiet" }, "The server has told nothing about itself yet.");
    this.all = h(
      "div",
      { hidden: true },
      this.speed.element,
      this.requests.element,
      this.cache.element,
      this.prefix.element,
      latencyTable(this.latencies),
      this.totals,
    );
    byId("tab-live-panel").append(this.nothing, this.all);
    server.addEventListener("sample", () => this.update());
  }

  update() {
    const { history } = this.server;
    const stats = history.latest;
    if (!stats || byId("tab-live-panel").hidden) return;
    this.nothing.hidden = true;
    this.all.hidden = false;
    this.speed.update([history.series(({ generated }) => generated)]);
    this.requests.update([
      history.series((sample) => sample.stats.running),
      history.series((sample) => sample.stats.waiting),
    ]);
    this.#cache(stats.kv);
    this.#prefix(stats.prefix, history.hitRate);
    this.latencies.replaceChildren(...LATENCIES.flatMap(([name, label]) => latencyRow(label, stats.latency?.[name])));
    this.#totals(stats);
  }

  /** (The engine tells how large its cache is with its first step; until then the model's card does.) */
  #cache({ used, total, block_size: size }) {
    const blocks = total || this.server.info?.model?.num_kv_blocks;
    if (!blocks) return this.cache.update(null, "–", "not allotted yet");
    const note = `${count(used)} of ${count(blocks)} blocks of ${plural(size, "token")}`;
    this.cache.update(used / blocks, percent(used / blocks), note);
  }

  #prefix({ queried_tokens: queried, hit_tokens: hits }, recent) {
    const share = recent ?? (queried > 0 ? hits / queried : null);
    const span = recent === null ? "since the start" : "in the last two minutes";
    this.prefix.update(
      share,
      share === null ? "–" : percent(share),
      share === null ? "no prompt was looked up yet" : `of prompt tokens were there already, ${span}`,
    );
  }

  #totals({ tokens, requests, preemptions, restarts }) {
    const rows = [
      ["Tokens read", count(tokens.prompt)],
      ["Tokens generated", count(tokens.generated)],
      ["Requests finished", count(requests.finished)],
      ["given up by clients", count(requests.aborted)],
      ["failed", count(requests.failed)],
      ["turned away when busy", count(requests.shed)],
      ["Preemptions", count(preemptions)],
      ["Restarts of the engine", count(restarts)],
    ];
    this.totals.replaceChildren(...rows.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
  }
}

function latencyTable(body) {
  return h(
    "table",
    { class: "latency" },
    h("caption", {}, "Latency ", h("span", { class: "quiet" }, "of the last five minutes")),
    h("thead", {}, h("tr", {}, h("td"), ...QUANTILES.map((name) => h("th", { scope: "col" }, name)))),
    body,
  );
}

/** The numbers, and below them the span from p50 to p99 on a logarithmic scale, which says nothing more. */
function latencyRow(label, quantiles) {
  const known = typeof quantiles?.p50 === "number";
  const numbers = QUANTILES.map((name) => h("td", {}, known ? seconds(quantiles[name]) : "–"));
  const picture = h(
    "tr",
    { "aria-hidden": "true" },
    h("td", { class: "span", colspan: 1 + QUANTILES.length }, span(known ? quantiles : {})),
  );
  return [h("tr", {}, h("th", { scope: "row" }, label), ...numbers), picture];
}

function span(quantiles) {
  const [least, most] = DECADES;
  const places = Object.values(quantiles).map(
    (value) => 100 * Math.min(1, Math.max(0, (Math.log10(Math.max(value, 1e-9)) - least) / (most - least))),
  );
  const [from, to] = [Math.min(...places), Math.max(...places)];
  return s(
    "svg",
    { viewBox: "0 0 100 10", preserveAspectRatio: "none" },
    s("rect", { class: "track", width: 100, height: 2, y: 4 }),
    places.length > 0 && s("rect", { class: "range", x: from, width: Math.max(0.5, to - from), height: 10 }),
    ...places.map((place) => s("rect", { class: "quantile", x: place - 0.35, width: 0.7, height: 10 })),
  );
}
