"""The page by keyboard alone, and what a screen reader is told."""

from __future__ import annotations

from collections.abc import Callable

from playwright.sync_api import Page, expect

from .driving import ask, look_again, prose
from .fake_server import Fake, Script, content

FOCUSED = """() => {
  const at = document.activeElement;
  return at.id || at.getAttribute("aria-label") || at.textContent.trim();
}"""


def focus_order(page: Page, number: int) -> list[str]:
    """What is focused, one Tab after the other."""
    found = []
    for _ in range(number):
        page.keyboard.press("Tab")
        found.append(page.evaluate(FOCUSED))
    return found


def test_tab_goes_through_the_page_in_reading_order(page: Page) -> None:
    expect(page.locator("#prompt")).to_be_focused()
    page.evaluate("document.activeElement.blur(); document.body.focus()")
    page.keyboard.press("Shift+Tab")  # from the start of the document there is nothing before
    page.evaluate("document.querySelector('.skip').focus()")
    expect(page.locator(".skip")).to_be_in_viewport()
    order = focus_order(page, 19)
    assert order[:6] == ["close-list", "new-chat", "import", "theme", "help", "state"]
    assert order[6:9] == [
        "open-panel",
        "log",
        "Tell me a taleTell me a short tale of a dragon who is afraid of the dark.",
    ]
    assert order[12:] == ["prompt", "tab-live", "close-panel", "tab-live-panel", *order[16:]]
    page.evaluate("document.querySelector('.skip').focus()")
    page.keyboard.press("Enter")
    expect(page.locator("#prompt")).to_be_focused()


def test_arrows_change_tabs(page: Page) -> None:
    page.focus("#tab-live")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#tab-settings")).to_be_focused()
    expect(page.locator("#tab-settings")).to_have_attribute("aria-selected", "true")
    expect(page.locator("#tab-settings-panel")).to_be_visible()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#tab-live-panel")).to_be_visible()
    expect(page.locator("#tab-settings-panel")).to_be_hidden()


def test_what_is_focused_can_be_seen(page: Page) -> None:
    page.focus("#tab-live")
    page.keyboard.press("Tab")
    style = "getComputedStyle(document.activeElement)"
    assert page.evaluate(f"[{style}.outlineStyle, {style}.outlineWidth]") == ["solid", "2px"]


def test_single_keys_do_what_the_list_says(page: Page, fake: Fake) -> None:
    ask(page, "Why?")
    page.focus("#log")
    for key in "?":
        page.keyboard.press(key)
    dialog = page.get_by_role("dialog", name="Keyboard")
    keys = dialog.locator("#shortcuts kbd").all_inner_texts()
    assert keys == ["/", "n", "e", "r", "c", "l", "s", "d", "?"]
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    page.keyboard.press("d")
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    page.keyboard.press("l")
    expect(page.locator("#list")).to_be_hidden()
    expect(page.locator("#open-list")).to_be_focused()
    page.keyboard.press("s")
    expect(page.locator("#panel")).to_be_hidden()
    page.keyboard.press("e")
    expect(page.locator(".edit-form textarea")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Edit and ask again")).to_be_focused()
    page.keyboard.press("r")
    expect(page.locator(".message.assistant")).to_have_attribute("aria-busy", "false")
    assert len(fake.requests) == 2
    page.keyboard.press("/")
    expect(page.locator("#prompt")).to_be_focused()
    page.keyboard.type("nrd?/")
    expect(page.locator("#prompt")).to_have_value("nrd?/")
    page.focus("#log")
    page.keyboard.press("n")
    expect(page.locator(".welcome")).to_be_visible()


def test_single_keys_can_be_switched_off(page: Page) -> None:
    page.click("#help")
    page.get_by_label("Single keys do this").uncheck()
    page.keyboard.press("Escape")
    page.reload()
    page.focus("#log")
    page.keyboard.press("d")
    page.keyboard.press("l")
    expect(page.locator("#list")).to_be_visible()
    assert page.get_attribute("html", "data-theme") is None


def test_shift_and_composition_do_not_send(page: Page, fake: Fake) -> None:
    page.fill("#prompt", "One")
    page.press("#prompt", "Shift+Enter")
    page.keyboard.type("two")
    expect(page.locator("#prompt")).to_have_value("One\ntwo")
    page.evaluate(
        """document.activeElement.dispatchEvent(
          new KeyboardEvent("keydown", { key: "Enter", isComposing: true, bubbles: true }),
        )"""
    )
    page.keyboard.press("Enter")
    expect(page.locator(".message.assistant")).to_have_attribute("aria-busy", "false")
    assert [request["messages"][0]["content"] for request in fake.requests] == ["One\ntwo"]


def test_what_lies_over_the_page_holds_the_focus_and_gives_it_back(new_page: Callable[..., Page]) -> None:
    page = new_page(viewport={"width": 700, "height": 700})
    page.click("#open-list")
    expect(page.locator("#close-list")).to_be_focused()
    assert page.evaluate("document.getElementById('main').inert")
    page.keyboard.press("Escape")
    expect(page.locator("#list")).to_be_hidden()
    expect(page.locator("#open-list")).to_be_focused()
    page.keyboard.press("s")
    expect(page.locator("#panel")).to_be_visible()
    page.mouse.click(20, 350)
    expect(page.locator("#panel")).to_be_hidden()


def test_a_screen_reader_hears_the_answer_once_and_no_token(page: Page, fake: Fake) -> None:
    page.evaluate(
        """() => {
          window.heard = [];
          const regions = "output, [role=status], [role=alert], [role=log], [aria-live]";
          for (const region of document.querySelectorAll(regions)) {
            new MutationObserver(() => region.textContent.trim() && window.heard.push(region.textContent.trim()))
              .observe(region, { childList: true, characterData: true, subtree: true });
          }
        }"""
    )
    fake.script = Script(content("Many small words come one by one."), hold=3)
    answer = ask(page, wait=False)
    expect(prose(answer)).to_have_text("Many small words")
    look_again(page)  # the live pictures change once a second, in silence
    page.wait_for_function("() => document.querySelectorAll('.stroke').length > 2")
    fake.go_on.set()
    expect(page.locator("#announcer")).to_have_text("Answer: Many small words come one by one.")
    assert page.evaluate("heard") == ["Answering", "Answer: Many small words come one by one."]
    fake.script = Script(content("word " * 200))
    ask(page, "More?")
    expect(page.locator("#announcer")).to_have_text("The answer is complete, 200 words.")
    fake.script = Script(status=400, error={"code": "X", "message": "No."})
    ask(page, "Wrong?")
    expect(page.locator("#announcer")).to_have_text("Error: No.")
