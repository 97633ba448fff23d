"""The Markdown renderer, in a browser: what becomes of a text, and that hostile texts do no harm."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from .fake_server import Fake, served

RENDER = """async (text) => {
  const { markdown } = await import(new URL("web/markdown.js", document.baseURI));
  const root = document.createElement("div");
  root.append(...markdown(text));
  for (const button of root.querySelectorAll("button, figcaption")) button.remove();
  for (const element of root.querySelectorAll("*")) {
    for (const name of ["class", "tabindex", "role", "target", "rel", "aria-label"]) element.removeAttribute(name);
  }
  return root.innerHTML;
}"""

CASES = [
    ("One\ntwo\n\nthree", "<p>One<br>two</p><p>three</p>"),
    ("# A ##\n###### B\n#no", "<h3>A</h3><h6>B</h6><p>#no</p>"),
    ("*a* **b** ~~c~~ __d__", "<p><em>a</em> <strong>b</strong> <s>c</s> <strong>d</strong></p>"),
    ("***a*** ***b** c*", "<p><em><strong>a</strong></em> <em><strong>b</strong> c</em></p>"),
    ("snake_case_name 2 * 3 * 4 *", "<p>snake_case_name 2 * 3 * 4 *</p>"),
    ("**open and *nested*", "<p>**open and <em>nested</em></p>"),
    ("*a **b* c**", "<p><em>a <em><em>b</em> c</em></em></p>"),
    ("`a *b*` `` ` `` `open", "<p><code>a *b*</code> <code>`</code> `open</p>"),
    (r"\*a\* \q \(x_1 * x_2\)", r"<p>*a* \q <code>\(x_1 * x_2\)</code></p>"),
    ("a &amp; b &lt;b&gt; &#60; &", "<p>a &amp; b &lt;b&gt; &amp;#60; &amp;</p>"),
    ("a<br>b<br/>c<i>d</i>", "<p>a<br>b<br>c&lt;i&gt;d&lt;/i&gt;</p>"),
    ("[*a*](https://b.c/d_(e) \"t\") [x](y) [z]", '<p><a href="https://b.c/d_(e)"><em>a</em></a> [x](y) [z]</p>'),
    ("![p](http://b.c/d.png)", '<p><a href="http://b.c/d.png">p</a></p>'),
    ("<https://b.c>", '<p><a href="https://b.c">https://b.c</a></p>'),
    ("at https://b.c/d, (https://e.f).",
     '<p>at <a href="https://b.c/d">https://b.c/d</a>, (<a href="https://e.f">https://e.f</a>).</p>'),
    ("[a](javascript:alert(1)) [b](data:text/html,x)", "<p>[a](javascript:alert(1)) [b](data:text/html,x)</p>"),
    ("[a](JaVaScRiPt:x) [b](/c) <javascript:x>", "<p>[a](JaVaScRiPt:x) [b](/c) &lt;javascript:x&gt;</p>"),
    ("- a\n- b\n  - c\n- d", "<ul><li>a</li><li>b<ul><li>c</li></ul></li><li>d</li></ul>"),
    ("* [x] a\n* [ ]", '<ul><li><input type="checkbox" disabled="" checked="">a</li><li>[ ]</li></ul>'),
    ("3. a\n4. b\n\n5. c", '<ol start="3"><li><p>a</p></li><li><p>b</p></li><li><p>c</p></li></ol>'),
    ("1. a:\n   - b\n\n   p\n2. c", "<ol><li>a:<ul><li>b</li></ul><p>p</p></li><li>c</li></ol>"),
    ("1. a\n\n   ```\n   b\n     c\n   ```\n2. d",
     "<ol><li>a<figure><pre><code>b\n  c</code></pre></figure></li><li>d</li></ol>"),
    ("It was\n1984. A year\n- of", "<p>It was<br>1984. A year</p><ul><li>of</li></ul>"),
    ("> a\nb\n> > c\n\nd", "<blockquote><p>a<br>b</p><blockquote><p>c</p></blockquote></blockquote><p>d</p>"),
    ("```py\na <b> *c*\n```\nd", "<figure><pre><code>a &lt;b&gt; *c*</code></pre></figure><p>d</p>"),
    ("````\n```\n````", "<figure><pre><code>```</code></pre></figure>"),
    ("~~~\nstill open", "<figure><pre><code>still open</code></pre></figure>"),
    ("a\n***\nb", "<p>a</p><hr><p>b</p>"),
    ("|a|b|\n|-|-:|\n|`x|y`|\\||\n|1|\n\nc",
     "<div><table><thead><tr><th>a</th><th>b</th></tr></thead><tbody><tr><td><code>x|y</code></td><td>|</td></tr>"
     "<tr><td>1</td><td></td></tr></tbody></table></div><p>c</p>"),
    ("a | b\nno table", "<p>a | b<br>no table</p>"),
    ("", ""),
    ("\r\na\r\n", "<p>a</p>"),
]  # fmt: skip

PUMPS = [
    "*a ", "**", "_a_", "a*", "***a** b*", "~~", "* * ", "`", "``a`", "\\(", "[", "![", "](", "[a](", "[a](b", "<", "&",
    "https://", "http", "<https://a", "(((", "#", "# ", "> ", "- ", "1. ", "  - a\n", "~~~\n", "|", "a|b\n", "|-", " ",
    "\u202e", "\ud800", "\x00",
]  # fmt: skip


@pytest.fixture(scope="module")
def blank(browser: Browser) -> Iterator[Page]:
    """One page for all cases: nothing of it changes."""
    with served(Fake()) as url:
        context = browser.new_context()
        page = context.new_page()
        page.goto(url)
        yield page
        context.close()


@pytest.mark.parametrize(("text", "expected"), CASES)
def test_text_becomes_what_it_says(blank: Page, text: str, expected: str) -> None:
    assert blank.evaluate(RENDER, text) == expected


def test_any_text_in_any_length_comes_out_in_time_and_in_bounded_depth(blank: Page) -> None:
    """Ten thousand repetitions of each piece. What takes quadratic time takes minutes, and the driver gives up."""
    blank.set_default_timeout(60_000)
    measured = blank.evaluate(
        """async (pumps) => {
          const { markdown } = await import(new URL("web/markdown.js", document.baseURI));
          const depth = (node) => {
            let most = 0;
            const walker = document.createTreeWalker(node);
            for (let at = walker.nextNode(); at; at = walker.nextNode()) {
              let own = 0;
              for (let up = at; up !== node; up = up.parentNode) own += 1;
              most = Math.max(most, own);
            }
            return most;
          };
          return pumps.map((pump) => {
            const root = document.createElement("div");
            root.append(...markdown(pump.repeat(10_000) + "x"));
            return [pump, depth(root), root.textContent.length > 0];
          });
        }""",
        PUMPS,
    )
    assert [pump for pump, _, any_text in measured if not any_text] == []
    assert max(depth for _, depth, _ in measured) < 80


def test_a_growing_text_keeps_the_nodes_of_what_is_complete(blank: Page) -> None:
    text = "# Title\n\nFirst *paragraph*.\n\n```py\nline 1\nline 2\n```\n\n- item\n- item 2\n\nlast"
    shown: dict[str, Any] = blank.evaluate(
        """async (text) => {
          const { MarkdownView, markdown } = await import(new URL("web/markdown.js", document.baseURI));
          const root = document.createElement("div");
          const view = new MarkdownView(root);
          const first = new Set();
          const whole = [];
          for (let length = 1; length <= text.length; length += 1) {
            view.update(text.slice(0, length));
            if (root.children.length > 1) first.add(root.children[1]);
            const fresh = document.createElement("div");
            fresh.append(...markdown(text.slice(0, length)));
            if (fresh.innerHTML !== root.innerHTML) whole.push(length);
          }
          view.update("# Title");
          return { kept: first.size, different: whole, children: root.children.length };
        }""",
        text,
    )
    assert shown["different"] == []
    assert shown["kept"] < len("First *paragraph*.") + 3
    assert shown["children"] == 1


def test_events_do_not_depend_on_where_the_stream_is_cut(blank: Page) -> None:
    stream = ': hi\r\n\r\ndata: {"é": 1}\n\nevent: error\rdata: a\rdata:b\r\r\nid: 7\ndata\n\nfoo: bar\n\ndata: cut off'
    found = blank.evaluate(
        """async (text) => {
          const { events } = await import(new URL("web/sse.js", document.baseURI));
          const bytes = new TextEncoder().encode(text);
          const read = async (...cuts) => {
            const pieces = [0, ...cuts].map((from, index, all) => bytes.slice(from, all[index + 1] ?? bytes.length));
            const stream = new ReadableStream({
              start(controller) {
                for (const piece of pieces) controller.enqueue(piece);
                controller.close();
              },
            });
            const found = [];
            for await (const event of events(stream)) found.push(event);
            return JSON.stringify(found);
          };
          const all = new Set([await read(), await read(...bytes.keys())]);
          for (let cut = 1; cut < bytes.length; cut += 1) all.add(await read(cut));
          return [...all].map((text) => JSON.parse(text));
        }""",
        stream,
    )
    assert found == [
        [{"event": "message", "data": '{"é": 1}'}, {"event": "error", "data": "a\nb"}, {"event": "message", "data": ""}]
    ]
