// Markdown into blocks: the part of CommonMark and GFM's tables that models write. Raw HTML is text.
//
// A block is { type, source, … }. At the top level it depends on its own source lines alone (there are no link
// definitions), so whoever shows a growing text may keep what it made of blocks whose source is the same.

const DEEPEST = 10;
const FENCE = /^( {0,3})(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?: +(.*))?$/;
const RULE = /^ {0,3}(?:(?:\*[ ]*){3,}|(?:-[ ]*){3,}|(?:_[ ]*){3,})$/;
const ITEM = /^( *)([-*+]|(\d{1,9})[.)])(?:( +)(\S.*)| *)$/;
const QUOTE = /^ {0,3}> ?(.*)$/;
const TABLE_RULE = /^ {0,3}\|?[ ]*:?-+:?[ ]*(?:\|[ ]*:?-+:?[ ]*)*\|?[ ]*$/;
const TASK = /^\[([ xX])\] (?=\S)/;

/** The blocks of a text. */
export function parse(text) {
  const lines = text.replace(/\r\n?/g, "\n").split("\n").map(expandTabs);
  return blocks(lines, 0);
}

const expandTabs = (line) => line.replace(/^[ \t]+/, (indent) => indent.replaceAll("\t", "    "));
const blank = (line) => /^\s*$/.test(line);
const indentOf = (line) => line.length - line.trimStart().length;

function blocks(lines, depth) {
  const found = [];
  for (let at = 0; at < lines.length;) {
    if (blank(lines[at])) {
      at += 1;
      continue;
    }
    const [block, next] = blockAt(lines, at, depth);
    found.push({ ...block, source: lines.slice(at, next).join("\n") });
    at = next;
  }
  return found;
}

function blockAt(lines, at, depth) {
  const line = lines[at];
  const nested = depth < DEEPEST;
  if (FENCE.test(line)) return codeAt(lines, at);
  if (HEADING.test(line)) {
    const [, marks, title] = line.match(HEADING);
    return [{ type: "heading", level: marks.length, text: (title ?? "").trim().replace(/(^| )#+$/, "") }, at + 1];
  }
  if (RULE.test(line)) return [{ type: "rule" }, at + 1];
  if (nested && QUOTE.test(line)) return quoteAt(lines, at, depth);
  if (nested && startsItem(line)) return listAt(lines, at, depth);
  if (startsTable(lines, at)) return tableAt(lines, at);
  return paragraphAt(lines, at, nested);
}

function codeAt(lines, at) {
  const [, indent, fence, info] = lines[at].match(FENCE);
  const end = new RegExp(`^ {0,3}${fence[0]}{${fence.length},}[ ]*$`);
  let next = at + 1;
  while (next < lines.length && !end.test(lines[next])) next += 1;
  const unindent = new RegExp(`^ {0,${indent.length}}`);
  const text = lines
    .slice(at + 1, next)
    .map((line) => line.replace(unindent, ""))
    .join("\n");
  return [{ type: "code", language: info.trim().split(/\s/)[0], text }, next + 1];
}

function quoteAt(lines, at, depth) {
  const inside = [];
  let next = at;
  while (next < lines.length && (QUOTE.test(lines[next]) || (next > at && goesOn(lines, next)))) {
    inside.push(QUOTE.test(lines[next]) ? lines[next].match(QUOTE)[1] : lines[next]);
    next += 1;
  }
  return [{ type: "quote", blocks: blocks(inside, depth + 1) }, next];
}

const startsItem = (line) => ITEM.test(line) && !RULE.test(line);
const itemKind = (marker) => (/\d/.test(marker) ? marker.at(-1) : marker);

/** Items with one kind of marker. Two columns make a line part of an item: models seldom indent by the book. */
function listAt(lines, at, depth) {
  const [, indent, first, number] = lines[at].match(ITEM);
  const items = [];
  let loose = false;
  let next = at;
  while (next < lines.length) {
    const found = startsItem(lines[next]) ? lines[next].match(ITEM) : null;
    if (!found || itemKind(found[2]) !== itemKind(first) || found[1].length > indent.length + 1) break;
    const [inside, after] = itemAt(lines, next, found);
    loose ||= inside.length > 1 && blank(inside.at(-1)) && after < lines.length && startsItem(lines[after]);
    items.push(item(inside, depth));
    next = after;
  }
  return [{ type: "list", start: number === undefined ? null : Number(number), loose, items }, next];
}

function itemAt(lines, at, [, indent, marker, , gap, text]) {
  const inside = [text ?? ""];
  const content = indent.length + marker.length + (gap?.length ?? 1);
  let next = at + 1;
  while (next < lines.length) {
    const line = lines[next];
    const belongs = blank(line) ? partAfterBlank(lines, next, indent.length + 2) : indentOf(line) >= indent.length + 2;
    if (!belongs && !goesOn(lines, next)) break;
    inside.push(line.slice(Math.min(indentOf(line), content)));
    next += 1;
  }
  while (next < lines.length && blank(lines[next])) {
    inside.push("");
    next += 1;
  }
  return [inside, next];
}

function partAfterBlank(lines, at, column) {
  let next = at;
  while (next < lines.length && blank(lines[next])) next += 1;
  return next < lines.length && indentOf(lines[next]) >= column;
}

function item(lines, depth) {
  const task = lines[0].match(TASK);
  if (task) lines[0] = lines[0].slice(task[0].length);
  return { checked: task ? task[1] !== " " : null, blocks: blocks(lines, depth + 1) };
}

const startsTable = (lines, at) =>
  at + 1 < lines.length &&
  lines[at].includes("|") &&
  TABLE_RULE.test(lines[at + 1]) &&
  cells(lines[at]).length === cells(lines[at + 1]).length;

function tableAt(lines, at) {
  const head = cells(lines[at]);
  const align = cells(lines[at + 1]).map((rule) =>
    rule.endsWith(":") ? (rule.startsWith(":") ? "center" : "right") : "left",
  );
  const rows = [];
  let next = at + 2;
  while (next < lines.length && !blank(lines[next]) && lines[next].includes("|")) {
    const row = cells(lines[next]);
    rows.push(head.map((_, column) => row[column] ?? ""));
    next += 1;
  }
  return [{ type: "table", head, align, rows }, next];
}

/** A row's cells; a bar after a backslash, or between backquotes, divides nothing. */
function cells(line) {
  const row = line.trim().replace(/^\|/, "").replace(/\|$/, "");
  const parts = [""];
  let code = false;
  for (let at = 0; at < row.length; at += 1) {
    if (row[at] === "\\" && row[at + 1] === "|") {
      parts[parts.length - 1] += "|";
      at += 1;
    } else if (row[at] === "|" && !code) {
      parts.push("");
    } else {
      if (row[at] === "`") code = !code;
      parts[parts.length - 1] += row[at];
    }
  }
  return parts.map((part) => part.trim());
}

/** Whether a line merely goes on with the paragraph that the line before it belongs to. */
function goesOn(lines, at) {
  const line = lines[at];
  return (
    !blank(line) && !blank(lines[at - 1]) && !FENCE.test(lines[at - 1]) && !startsBlock(line) && !startsTable(lines, at)
  );
}

const startsBlock = (line) =>
  FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || startsItem(line);

/** Prose may happen to begin a line with "1984." or "-": only a list's first item with words ends a paragraph. */
function interrupts(lines, at) {
  const found = startsItem(lines[at]) ? lines[at].match(ITEM) : null;
  if (found) return found[5] !== undefined && (found[3] ?? "1") === "1";
  return startsBlock(lines[at]) || startsTable(lines, at);
}

function paragraphAt(lines, at, nested) {
  let next = at + 1;
  while (next < lines.length && !blank(lines[next]) && !(nested && interrupts(lines, next))) next += 1;
  return [
    {
      type: "paragraph",
      text: lines
        .slice(at, next)
        .map((line) => line.trim())
        .join("\n"),
    },
    next,
  ];
}
