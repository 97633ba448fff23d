// Live pictures of the server, from /server/stats.

import { LineChart, Meter } from "./charts.js";
import { byId, h, s } from "./dom.js";
import { count, digits, percent, plural, seconds } from "./format.js";

const LATENCIES = [["ttft", "First token"], ["itl", "Between tokens"], ["e2e", "Whole answer"]];
const QUANTILES = [["p50", "half"], ["p90", "90 %"], ["p99", "99 %"]];
const DECADES = [-4, 3]; // the scale of latencies, 0.1 ms to 1000 s, as powers of ten

export class Live {
  constructor(server) {
    this.server = server;
    this.speed = new LineChart("Tokens per second", [{ name: "generated", style: "area" }, { name: "read", style: "faint" }], digits);
    this.requests = new LineChart("Requests", [{ name: "running", style: "area" }, { name: "waiting", style: "line" }], count);
    this.cache = new Meter("KV cache in use");
    this.prefix = new Meter("Prefix cache hits");
    this.latencies = h("tbody");
    this.totals = h("dl", { class: "facts-list" });
    this.nothing = h("p", { class: "quiet" }, "The server has told nothing about itself yet.");
    this.all = h("div", { hidden: true }, this.speed.element, this.requests.element, this.cache.element, this.prefix.element,
      latencyTable(this.latencies), this.totals);
    byId("tab-live-panel").append(this.nothing, this.all);
    server.addEventListener("sample", () => this.update());
  }

  update() {
    const { history } = this.server;
    const stats = history.latest;
    if (!stats || byId("tab-live-panel").hidden) return;
    this.nothing.hidden = true;
    this.all.hidden = false;
    this.speed.update([history.series(({ generated }) => generated), history.series(({ prompt }) => prompt)]);
    this.requests.update([history.series((sample) => sample.stats.running), history.series((sample) => sample.stats.waiting)]);
    const { used, total, block_size: size } = stats.kv;
    this.cache.update(total ? used / total : null, total ? percent(used / total) : "–",
      `${count(used)} of ${count(total)} blocks of ${plural(size, "token")}`);
    this.#prefix(stats.prefix, history.hitRate);
    this.latencies.replaceChildren(...LATENCIES.map(([name, label]) => latencyRow(label, stats.latency?.[name])));
    this.#totals(stats);
  }

  #prefix({ queried_tokens: queried, hit_tokens: hits }, recent) {
    const share = recent ?? (queried > 0 ? hits / queried : null);
    const span = recent === null ? "since the start" : "in the last two minutes";
    this.prefix.update(share, share === null ? "–" : percent(share),
      share === null ? "no prompt was looked up yet" : `of prompt tokens were there already, ${span}`);
  }

  #totals({ tokens, requests, preemptions, restarts }) {
    const rows = [
      ["Tokens read", count(tokens.prompt)], ["Tokens generated", count(tokens.generated)],
      ["Requests finished", count(requests.finished)], ["given up by clients", count(requests.aborted)],
      ["failed", count(requests.failed)], ["turned away when busy", count(requests.shed)],
      ["Preemptions", count(preemptions)], ["Restarts of the engine", count(restarts)],
    ];
    this.totals.replaceChildren(...rows.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
  }
}

function latencyTable(body) {
  return h("table", { class: "latency" },
    h("caption", {}, "Latency", h("span", { class: "quiet" }, " within which a share of the last five minutes' requests were served")),
    h("thead", {}, h("tr", {}, h("td"), ...QUANTILES.map(([, share]) => h("th", { scope: "col" }, share)))), body);
}

function latencyRow(label, quantiles) {
  const known = quantiles && quantiles.p50 !== null && quantiles.p50 !== undefined;
  return h("tr", {}, h("th", { scope: "row" }, label, known && span(quantiles)),
    ...QUANTILES.map(([name]) => h("td", {}, known ? seconds(quantiles[name]) : "–")));
}

/** From p50 to p99 on a logarithmic scale. The numbers stand beside it, so it is hidden from screen readers. */
function span({ p50, p90, p99 }) {
  const [least, most] = DECADES;
  const place = (value) => 100 * Math.min(1, Math.max(0, (Math.log10(Math.max(value, 1e-9)) - least) / (most - least)));
  return s("svg", { viewBox: "0 0 100 6", preserveAspectRatio: "none", "aria-hidden": "true" },
    s("rect", { class: "track", width: 100, height: 1, y: 2.5 }),
    s("rect", { class: "range", x: place(p50), width: Math.max(1, place(p99) - place(p50)), height: 2, y: 2 }),
    ...[p50, p90, p99].map((value) => s("rect", { class: "mark", x: place(value) - 0.5, width: 1, height: 6 })));
}
