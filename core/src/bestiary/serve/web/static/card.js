// The card of the model and of the plugin that brought it, from /server/info.

import { byId, h } from "./dom.js";
import { bytes, count, plural, seconds, short } from "./format.js";

const TONES = 5; // colours of the bar, in style.css

/** Show the card of `info`, or that there is none yet. */
export function showCard(info, state) {
  const model = info?.model;
  const parts = model
    ? [title(model), facts(model, info), phases(info.server?.phases), adapters(info.adapters), ops(model.ops)]
    : [noModel(state)];
  byId("tab-model-panel").replaceChildren(...parts.filter(Boolean));
}

function noModel(state) {
  return h(
    "p",
    { class: "quiet" },
    state === "starting" ? "The model is being loaded." : "Nothing is known of the model.",
  );
}

function title({ name, distribution, version, architecture }) {
  return h(
    "header",
    { class: "card-title" },
    h("h3", {}, name),
    h("p", { class: "quiet" }, architecture, " · brought by ", h("strong", {}, distribution), ` ${version}`),
  );
}

function facts(model, { server }) {
  const { num_kv_blocks: blocks, block_size: size } = model;
  const rows = [
    ["Parameters", model.parameters && short(model.parameters)],
    ["Weights", model.weight_bytes && bytes(model.weight_bytes)],
    ["Computes in", model.dtype],
    ["Quantization", model.quantization ?? "none"],
    ["Context", model.max_model_len && plural(model.max_model_len, "token")],
    ["At once", model.max_num_seqs && plural(model.max_num_seqs, "request")],
    ["KV cache", blocks && `${count(blocks)} blocks, ${count(blocks * size)} tokens`],
    ["Vocabulary", model.vocab_size && count(model.vocab_size)],
    ["Device", model.device],
    ["Attention", model.attention_backend],
    ["Supports", model.capabilities?.map((name) => name.replace(/^Supports/, "")).join(", ")],
    ["Bestiary", server?.version],
    ["Since", server?.started && new Date(server.started * 1000).toLocaleString()],
  ];
  return list(rows.filter(([, value]) => value));
}

const list = (rows) =>
  h("dl", { class: "facts-list" }, ...rows.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, String(value))]));

/** Which version of each op was chosen. They are many, so they are folded away. */
function ops(chosen) {
  const entries = Object.entries(chosen ?? {});
  if (entries.length === 0) return null;
  return h("details", {}, h("summary", {}, `Ops (${entries.length})`), list(entries));
}

/** How long each part of the start took: a bar, the longest part the strongest in colour, and the same in words. */
function phases(times) {
  const entries = Object.entries(times ?? {}).filter(([, time]) => time > 0);
  if (entries.length === 0) return null;
  const total = entries.reduce((sum, [, time]) => sum + time, 0);
  const longestFirst = entries.toSorted(([, one], [, other]) => other - one);
  const tone = (entry) => `tone-${Math.min(longestFirst.indexOf(entry), TONES - 1)}`;
  const parts = entries.map((entry) => {
    const part = h("i", { class: tone(entry) });
    part.style.flexGrow = String(entry[1] / total);
    return part;
  });
  const line = (entry) => h("li", {}, h("i", { class: tone(entry) }), entry[0], h("span", {}, seconds(entry[1])));
  return h(
    "section",
    { class: "phases" },
    h("h4", {}, "Start ", h("span", { class: "quiet" }, seconds(total))),
    h("div", { class: "bar", "aria-hidden": "true" }, ...parts),
    h("ul", {}, ...entries.map(line)),
  );
}

function adapters(all) {
  if (!all?.length) return null;
  return h(
    "section",
    {},
    h("h4", {}, "Adapters"),
    h("ul", { class: "plain" }, ...all.map((adapter) => h("li", {}, adapter.name ?? adapter.id ?? String(adapter)))),
  );
}
