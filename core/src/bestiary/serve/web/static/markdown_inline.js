// Markdown inside a block into nodes: emphasis, code, links, line breaks. In time linear in the text, whatever it is.
//
// First the text is cut into tokens, then delimiters are paired (links first, so that nothing crosses their edges),
// then one walk makes the nodes.

import { h } from "./dom.js";

const DEEPEST = 24;
const LONGEST_RUN = 16;
const PUNCTUATION = /[\p{P}\p{S}]/u;
const ENTITY = { "&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&apos;": "'", "&nbsp;": "\u00a0" };
const STICKY = {
  plain: /[^\\`*_~[\]!<&\nhH]+|h(?!ttps?:\/\/)|H/y,
  ticks: /`+/y,
  run: /\*+|_+|~+/y,
  target: /\(\s{0,9}<?((?:[^\s()<>]|\([^\s()<>]{0,500}\)){1,2000})>?(?:\s{1,9}(?:"[^"\n]*"|'[^'\n]*'))?\s{0,9}\)/y,
  angled: /<((?:https?:\/\/|mailto:)[^\s<>]{1,2000})>/y,
  bare: /https?:\/\/[^\s<>`]{1,2000}/y,
  breaking: /<br ?\/?>/iy,
  entity: /&(?:amp|lt|gt|quot|apos|nbsp);/y,
};
const TAGS = { "*": ["em", "strong"], _: ["em", "strong"], "~": ["s", "s"] };

/** A fragment with the text's nodes. */
export function inline(text) {
  const tokens = tokenize(text);
  pair(tokens, 0, tokens.length);
  return build(tokens);
}

function match(name, text, at) {
  STICKY[name].lastIndex = at;
  return STICKY[name].exec(text);
}

function tokenize(text) {
  const tokens = [];
  const brackets = [];
  const hopeless = new Set(); // lengths of backquote runs, and kinds of formula, that nothing closes any more
  const say = (value) => tokens.push({ text: value });
  for (let at = 0; at < text.length;) {
    const char = text[at];
    let found = match("plain", text, at);
    if (found) {
      say(found[0]);
    } else if (char === "\\") {
      found = [formula(text, at, hopeless) ?? text.slice(at, at + 2)];
      if (found[0].length > 2) tokens.push({ code: found[0], kind: "formula" });
      else say(/^\\[!-/:-@[-`{-~]$/.test(found[0]) ? found[0][1] : found[0]);
    } else if (char === "`") {
      found = codeSpan(text, at, hopeless, tokens);
    } else if ((found = match("run", text, at))) {
      tokens.push(delimiter(text, at, found[0]));
    } else if (char === "[" || (char === "!" && text[at + 1] === "[")) {
      found = [char === "[" ? "[" : "!["];
      brackets.push(tokens.length);
      say(found[0]);
    } else if (char === "]") {
      found = closeLink(text, at, tokens, brackets);
    } else if ((found = match("angled", text, at)) && safe(found[1])) {
      tokens.push({ href: found[1], text: found[1].replace(/^mailto:/, "") });
    } else if ((found = bareLink(text, at))) {
      tokens.push({ href: found[0], text: found[0] });
    } else if (char === "\n" || (found = match("breaking", text, at))) {
      found ??= [char];
      tokens.push({ break: true });
    } else {
      found = match("entity", text, at) ?? [char];
      say(ENTITY[found[0]] ?? found[0]);
    }
    at += found[0].length;
  }
  return tokens;
}

/** Formulas are shown as they were written: \( … \) and \[ … \]. */
function formula(text, at, hopeless) {
  const closing = { "(": "\\)", "[": "\\]" }[text[at + 1]];
  if (!closing || hopeless.has(closing)) return null;
  const end = text.indexOf(closing, at + 2);
  if (end < 0) hopeless.add(closing);
  return end < 0 ? null : text.slice(at, end + 2);
}

function codeSpan(text, at, hopeless, tokens) {
  const [ticks] = match("ticks", text, at);
  const end = hopeless.has(ticks.length) ? -1 : closingTicks(text, at + ticks.length, ticks.length);
  if (end < 0) {
    hopeless.add(ticks.length);
    tokens.push({ text: ticks });
    return [ticks];
  }
  const code = text.slice(at + ticks.length, end).replaceAll("\n", " ");
  tokens.push({ code: /^ .*[^ ].* $/.test(code) ? code.slice(1, -1) : code });
  return [text.slice(at, end + ticks.length)];
}

function closingTicks(text, from, length) {
  for (let at = text.indexOf("`", from); at >= 0; at = text.indexOf("`", at)) {
    const run = match("ticks", text, at)[0].length;
    if (run === length) return at;
    at += run;
  }
  return -1;
}

/** CommonMark's rules of flanking, which keep 2 * 3 * 4 and snake_case_names as they are. */
function delimiter(text, at, run) {
  const char = run[0];
  if (run.length > LONGEST_RUN || (char === "~" && run.length !== 2)) return { text: run };
  const before = text[at - 1] ?? " ";
  const after = text[at + run.length] ?? " ";
  const left = !/\s/.test(after) && (!PUNCTUATION.test(after) || /\s/.test(before) || PUNCTUATION.test(before));
  const right = !/\s/.test(before) && (!PUNCTUATION.test(before) || /\s/.test(after) || PUNCTUATION.test(after));
  const word = char === "_";
  return {
    char,
    left: run.length,
    opens: [],
    closes: [],
    canOpen: left && (!word || !right || PUNCTUATION.test(before)),
    canClose: right && (!word || !left || PUNCTUATION.test(after)),
  };
}

function closeLink(text, at, tokens, brackets) {
  const target = brackets.length > 0 ? match("target", text, at + 1) : null;
  const opening = brackets.pop();
  if (!target || !safe(target[1])) {
    tokens.push({ text: "]" });
    return ["]"];
  }
  pair(tokens, opening + 1, tokens.length);
  for (const token of tokens.slice(opening + 1)) token.done = true;
  if (opening === tokens.length - 1) tokens.push({ text: target[1] });
  tokens[opening] = { enter: target[1] };
  tokens.push({ leave: true });
  brackets.length = 0; // a link inside a link is none
  return [text.slice(at, at + 1 + target[0].length)];
}

function bareLink(text, at) {
  if (/[\p{L}\p{N}]/u.test(text[at - 1] ?? " ")) return null;
  const found = match("bare", text, at);
  if (!found) return null;
  let url = found[0];
  for (
    let last = url.at(-1);
    ".,;:!?'\"*_~|]}".includes(last) || (last === ")" && !url.includes("("));
    last = url.at(-1)
  ) {
    url = url.slice(0, -1);
  }
  return safe(url) ? [url] : null;
}

function safe(href) {
  try {
    return ["http:", "https:", "mailto:"].includes(new URL(href).protocol);
  } catch {
    return false; // no address, or one that is relative: models have no pages here
  }
}

/** Match closing delimiters with the nearest opening ones of their kind, between two tokens. */
function pair(tokens, from, to) {
  const stack = [];
  const searched = {}; // kind → nothing that opens it stands before this token
  for (let at = from; at < to; at += 1) {
    const token = tokens[at];
    if (!token.char || token.done) continue;
    while (token.canClose && token.left > 0) {
      let top = stack.length - 1;
      while (top >= 0 && stack[top] >= (searched[token.char] ?? 0) && tokens[stack[top]].char !== token.char) top -= 1;
      if (top < 0 || stack[top] < (searched[token.char] ?? 0)) {
        searched[token.char] = at;
        break;
      }
      const opener = tokens[stack[top]];
      const marks = token.char === "~" || (opener.left > 1 && token.left > 1) ? 2 : 1;
      opener.opens.push(marks);
      token.closes.push(marks);
      opener.left -= marks;
      token.left -= marks;
      stack.length = opener.left > 0 ? top + 1 : top;
    }
    if (token.canOpen && token.left > 0) stack.push(at);
  }
}

function build(tokens) {
  const root = document.createDocumentFragment();
  const open = [root];
  const enter = (element) => {
    if (open.length < DEEPEST) open.at(-1).append(element);
    open.push(open.length < DEEPEST ? element : open.at(-1));
  };
  for (const token of tokens) {
    if (token.char) {
      for (const _ of token.closes) open.pop();
      open.at(-1).append(token.char.repeat(token.left));
      for (const marks of token.opens.reverse()) enter(h(TAGS[token.char][marks - 1]));
    } else if (token.enter) enter(link(token.enter));
    else if (token.leave) open.pop();
    else if (token.break) open.at(-1).append(h("br"));
    else if (token.code !== undefined) open.at(-1).append(h("code", { class: token.kind }, token.code));
    else if (token.href) open.at(-1).append(link(token.href, token.text));
    else open.at(-1).append(token.text);
  }
  root.normalize();
  return root;
}

const link = (href, ...children) =>
  h("a", { href, target: "_blank", rel: "noopener noreferrer nofollow" }, ...children);
