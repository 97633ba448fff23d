"""The page on small screens, in the dark, with large texts, and by the rules of WCAG that a program can check."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from .driving import ask, look_again, prose, titles
from .fake_server import Fake, Script, content

WIDE = "word" * 60
RICH = f"""# A title that is rather long and has to be broken somewhere

{WIDE} and `{WIDE}` and https://example.org/{WIDE}

- one
  - two
    - three {WIDE}

| a | b | c | d | e | f |
|---|---|---|---|---|---|
| {WIDE} | 2 | 3 | 4 | 5 | 6 |

```python
print("{WIDE}")
```

> > quoted twice {WIDE}
"""

OVERFLOWS = """() => {
  const wide = [...document.querySelectorAll("body *")].filter((element) => {
    const box = element.getBoundingClientRect();
    if (box.width === 0 || element.closest("pre, .table, .hidden-text, .symbols")) return false;
    return box.right > innerWidth + 1 || box.left < -1;
  });
  return [document.documentElement.scrollWidth > innerWidth, wide.map((element) => element.outerHTML.slice(0, 80))];
}"""

# Contrast of every visible text with what is painted behind it, by the formula of WCAG. Disabled controls are exempt.
CONTRAST = """() => {
  const numbers = (color) => {
    const canvas = new OffscreenCanvas(1, 1).getContext("2d", { colorSpace: "srgb" });
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const over = ([r, g, b, a], under) => [r, g, b].map((value, index) => (value * a + under[index] * (255 - a)) / 255);
  const behind = (element) => {
    const stack = [];
    for (let at = element; at; at = at.parentElement) stack.push(numbers(getComputedStyle(at).backgroundColor));
    return stack.reverse().reduce((under, color) => over(color, under), [255, 255, 255]);
  };
  const luminance = (color) => {
    const [r, g, b] = color.map((value) => value / 255)
      .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let seen = 0;
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    const hidden = element.closest(".hidden-text, noscript, script, :disabled, option");
    if (!node.data.trim() || hidden || !element.checkVisibility({ opacityProperty: true })) continue;
    seen += 1;
    const ground = behind(element);
    const ink = over(numbers(getComputedStyle(element).color), ground);
    const [light, dark] = [luminance(ink), luminance(ground)].sort((a, b) => b - a);
    const ratio = (light + 0.05) / (dark + 0.05);
    if (ratio < 4.5) found.push([node.data.trim().slice(0, 40), Math.round(ratio * 100) / 100]);
  }
  return [seen, found];
}"""

# Names by the parts of the computation that this page uses: aria-label, aria-labelledby, <label>, content.
NAMELESS = """() => [...document.querySelectorAll("button, a, input, select, textarea, summary, [role], [tabindex]")]
  .filter((element) => element.checkVisibility() && !element.closest("[inert]"))
  .filter((element) => {
    const ids = (element.getAttribute("aria-labelledby") ?? "").split(" ");
    const labelled = ids.map((id) => document.getElementById(id));
    const texts = [element.getAttribute("aria-label"), ...labelled.map((label) => label?.textContent),
      ...[...(element.labels ?? [])].map((label) => label.textContent)];
    const byContent = element.matches("button, a, summary, [role=tab], [role=status], [role=tablist], [role=alert]");
    const content = byContent ? element.textContent || element.role : "";
    return ![...texts, content].some((text) => text?.trim());
  }).map((element) => element.outerHTML.slice(0, 100))"""

SMALL = """() => [...document.querySelectorAll("button, input:not([type=range]), select, summary, textarea, a.button")]
  .filter((element) => element.checkVisibility() && !element.closest("[inert], .prose, :disabled"))
  .filter((element) => {
    const { width, height } = (element.closest("label") ?? element).getBoundingClientRect();
    return width < 24 || height < 24;
  }).map((element) => element.outerHTML.slice(0, 100))"""


def states(page: Page, fake: Fake) -> Iterator[str]:
    """The page in one state after the other."""
    expect(page.locator("#state")).to_have_text("ready")
    yield "first visit"
    fake.script = Script(content(RICH))
    ask(page, WIDE)
    yield "long words"
    fake.script = Script([{"reasoning": WIDE}, {"tool_calls": [{"index": 0, "id": "a", "function": {"name": WIDE}}]}])
    ask(page, "Call a tool.")
    yield "a tool call"
    fake.script = Script(status=400, error={"code": "A_CODE", "message": WIDE, "fix": WIDE})
    ask(page, "Refuse this.")
    yield "an error"
    fake.state = "stalled"
    look_again(page)
    expect(page.locator("#banner")).not_to_be_empty()
    yield "a banner"
    fake.state = "ready"
    page.locator("#log").press("e")
    expect(page.locator(".edit-form textarea")).to_be_focused()
    yield "editing"
    page.keyboard.press("Escape")
    for tab in ("tab-settings", "tab-model", "tab-live"):
        if page.locator("#panel").is_hidden():
            page.click("#open-panel")
        page.click(f"#{tab}")
        yield tab
    page.click("#close-panel")
    if page.locator("#list").is_hidden():
        page.click("#open-list")
    yield "list"
    page.click("#help")
    yield "help"
    page.get_by_role("button", name="Close").click()


def checked(page: Page, fake: Fake, script: str) -> dict[str, Any]:
    return {name: page.evaluate(script) for name in states(page, fake)}


def test_the_narrowest_phone_shows_everything(fake: Fake, new_page: Callable[..., Page]) -> None:
    fake.info["model"]["name"] = fake.models[0]["id"] = WIDE
    page = new_page(viewport={"width": 320, "height": 568}, has_touch=True, is_mobile=True)
    found = checked(page, fake, OVERFLOWS)
    assert {name: wide for name, wide in found.items() if wide != [False, []]} == {}
    assert len(found) == 11


@pytest.mark.full
@pytest.mark.parametrize("width", [360, 430, 768, 900, 1024, 1280, 2560])
def test_every_width_shows_everything(fake: Fake, new_page: Callable[..., Page], width: int) -> None:
    page = new_page(viewport={"width": width, "height": 800})
    found = checked(page, fake, OVERFLOWS)
    assert {name: wide for name, wide in found.items() if wide != [False, []]} == {}


@pytest.mark.full
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out(fake: Fake, new_page: Callable[..., Page], scheme: str) -> None:
    page = new_page(color_scheme=scheme)
    found = checked(page, fake, CONTRAST)
    assert min(seen for seen, _ in found.values()) > 20
    assert {name: weak for name, (_, weak) in found.items() if weak} == {}


@pytest.mark.full
def test_every_control_has_a_name(fake: Fake, new_page: Callable[..., Page]) -> None:
    found = checked(new_page(), fake, NAMELESS)
    assert {name: nameless for name, nameless in found.items() if nameless} == {}


@pytest.mark.full
def test_everything_is_large_enough_to_touch(fake: Fake, new_page: Callable[..., Page]) -> None:
    page = new_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    found = checked(page, fake, SMALL)
    assert {name: small for name, small in found.items() if small} == {}


@pytest.mark.full
def test_the_checks_see_what_they_are_for(page: Page) -> None:
    page.evaluate(
        """() => {
          const add = (tag, css, text) => {
            const element = document.createElement(tag);
            Object.assign(element.style, css);
            element.textContent = text;
            document.body.append(element);
          };
          add("button", { position: "fixed", left: "1270px", width: "90px", height: "10px" }, "");
          add("p", { color: "#999", background: "#fff", position: "fixed", top: 0 }, "faint");
        }"""
    )
    assert len(page.evaluate(OVERFLOWS)[1]) == len(page.evaluate(NAMELESS)) == len(page.evaluate(SMALL)) == 1
    assert page.evaluate(CONTRAST)[1] == [["faint", 2.85]]


@pytest.mark.full
def test_the_theme_follows_the_system_until_one_is_chosen(new_page: Callable[..., Page]) -> None:
    page = new_page(color_scheme="dark")
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)
    page.emulate_media(color_scheme="light")
    light = page.evaluate(ground)
    assert light != dark
    page.get_by_role("button", name="Dark or light").click()
    assert page.evaluate(ground) == dark
    page.reload()
    assert page.evaluate(ground) == dark
    page.get_by_role("button", name="Dark or light").click()
    assert page.evaluate(ground) == light


@pytest.mark.full
def test_nothing_moves_for_those_who_asked_for_rest(fake: Fake, new_page: Callable[..., Page]) -> None:
    fake.script = Script(hold=0)
    page = new_page(reduced_motion="reduce")
    expect(ask(page, wait=False).locator(".waiting")).to_be_visible()
    assert page.evaluate("document.getAnimations().length") == 0
    page.emulate_media(reduced_motion="no-preference")
    assert page.evaluate("document.getAnimations().length") == 3


@pytest.mark.full
def test_a_touch_keyboard_makes_new_lines(fake: Fake, new_page: Callable[..., Page]) -> None:
    page = new_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page.fill("#prompt", "One")
    page.press("#prompt", "Enter")
    page.keyboard.type("two")
    expect(page.locator("#prompt")).to_have_value("One\ntwo")
    page.get_by_role("button", name="Send").tap()
    expect(prose(page.locator(".message.assistant"))).to_have_text("A bestiary is a book of beasts.")
    assert fake.requests[0]["messages"][0]["content"] == "One\ntwo"


@pytest.mark.full
def test_a_long_answer_is_complete_and_leaves_the_page_usable(page: Page, fake: Fake) -> None:
    paragraphs = [f"Paragraph {number} tells of *beast* number {number}." for number in range(1500)]
    fake.script = Script(content("\n\n".join(paragraphs)), hold=6000)
    answer = ask(page, wait=False)
    expect(prose(answer)).to_contain_text("Paragraph 900")
    page.click("#tab-model")
    expect(page.locator("#tab-model-panel")).to_be_visible()
    page.evaluate("window.kept = document.querySelector('.prose p:nth-child(500)')")
    fake.go_on.set()
    expect(answer).to_have_attribute("aria-busy", "false", timeout=60_000)
    assert prose(answer).locator("p").all_inner_texts() == [text.replace("*", "") for text in paragraphs]
    assert page.evaluate("kept === document.querySelector('.prose p:nth-child(500)')")


@pytest.mark.full
def test_what_is_read_stays_in_place_while_more_comes(page: Page, fake: Fake) -> None:
    fake.script = Script(content("\n\n".join(f"Line {number}." for number in range(200))), hold=200)
    answer = ask(page, wait=False)
    expect(prose(answer)).to_contain_text("Line 90")
    page.evaluate("document.getElementById('log').scrollTop = 0")
    expect(page.locator("#to-end")).to_be_visible()
    fake.go_on.set()
    expect(answer).to_have_attribute("aria-busy", "false")
    assert page.evaluate("document.getElementById('log').scrollTop") == 0
    page.locator("#to-end").click()
    expect(page.locator("#to-end")).to_be_hidden()
    expect(prose(answer).locator("p").last).to_be_in_viewport()


@pytest.mark.full
def test_two_tabs_know_of_each_other(page: Page, fake: Fake) -> None:
    other = page.context.new_page()
    other.goto(page.url)
    ask(page, "In the first tab?")
    expect(other.locator("#conversations .title")).to_have_text("In the first tab?")
    ask(other, "In the second tab?")
    page.wait_for_function("() => document.querySelectorAll('#conversations .title').length === 2")
    assert titles(page) == ["In the second tab?", "In the first tab?"]
    other.close()


@pytest.mark.full
def test_a_hundred_conversations_stay_in_reach(page: Page, fake: Fake) -> None:
    page.evaluate(
        """() => {
          const index = [];
          for (let number = 0; number < 100; number += 1) {
            const entry = { id: `c${number}`, title: `Question ${number}`, updated: number };
            const messages = [{ role: "user", content: entry.title }];
            localStorage[`bestiary.conversation.${entry.id}`] = JSON.stringify({ ...entry, system: "", messages });
            index.push({ ...entry, size: 100 });
          }
          localStorage["bestiary.conversations"] = JSON.stringify(index);
        }"""
    )
    page.reload()
    assert len(titles(page)) == 100
    page.get_by_role("button", name="Question 3", exact=True).click()
    expect(page.locator(".said")).to_have_text("Question 3")
    expect(page.get_by_role("button", name="New conversation")).to_be_in_viewport()
