// Markdown as nodes, safely: no HTML is parsed, no picture is fetched, links lead to http, https and mailto only.

import { copyButton } from "./copy.js";
import { h } from "./dom.js";
import { parse } from "./markdown_blocks.js";
import { inline } from "./markdown_inline.js";

/** A text that may grow, shown in `root`. Blocks that stay the same keep their nodes, and with them a selection. */
export class MarkdownView {
  #shown = [];

  constructor(root) {
    this.root = root;
  }

  update(text) {
    const blocks = parse(text);
    let same = 0;
    while (same < blocks.length && blocks[same].source === this.#shown[same]?.source) same += 1;
    if (grows(this.#shown[same], blocks[same])) {
      this.root.children[same].querySelector("code").textContent = blocks[same].text;
      same += 1;
    }
    while (this.root.children.length > same) this.root.lastChild.remove();
    this.root.append(...blocks.slice(same).map(node));
    this.#shown = blocks;
  }
}

/** The nodes of a text that is complete. */
export function markdown(text) {
  return parse(text).map(node);
}

const grows = (before, after) =>
  before?.type === "code" && after?.type === "code" && before.language === after.language;

function node(block) {
  switch (block.type) {
    case "heading":
      return h(`h${Math.min(block.level + 2, 6)}`, {}, inline(block.text)); // below the page's own headings
    case "rule":
      return h("hr");
    case "code":
      return code(block);
    case "quote":
      return h("blockquote", {}, ...block.blocks.map(node));
    case "list":
      return list(block);
    case "table":
      return table(block);
    default:
      return h("p", {}, inline(block.text));
  }
}

function code({ language, text }) {
  const content = h("code", {}, text);
  const name = language ? `Code in ${language}` : "Code";
  return h(
    "figure",
    { class: "code" },
    h(
      "figcaption",
      {},
      h("span", {}, language || "text"),
      copyButton(() => content.textContent, "Copy this code"),
    ),
    h("pre", { tabindex: "0", role: "region", "aria-label": name }, content),
  );
}

function list({ start, loose, items }) {
  const ordered = start !== null;
  return h(
    ordered ? "ol" : "ul",
    { class: loose ? "loose" : null, start: ordered && start !== 1 ? start : null },
    ...items.map((item) => h("li", { class: item.checked === null ? null : "task" }, ...itemNodes(item, loose))),
  );
}

function itemNodes({ checked, blocks }, loose) {
  const box = checked === null ? [] : [h("input", { type: "checkbox", disabled: true, checked, "aria-label": "done" })];
  const [first, ...rest] = blocks;
  if (first?.type !== "paragraph" || loose) return [...box, ...blocks.map(node)];
  return [...box, inline(first.text), ...rest.map(node)];
}

function table({ head, align, rows }) {
  const row = (tag, cells) =>
    h("tr", {}, ...cells.map((cell, column) => h(tag, { class: align[column] }, inline(cell))));
  return h(
    "div",
    { class: "table", tabindex: "0", role: "region", "aria-label": "Table" },
    h("table", {}, h("thead", {}, row("th", head)), h("tbody", {}, ...rows.map((cells) => row("td", cells)))),
  );
}
