"""Several conversations, kept in the browser: switching, deleting, files, and what happens when there is no room."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import Page, expect

from .driving import ask, prose, titles
from .fake_server import Fake, Script, content


def test_conversations_are_kept_and_can_be_switched(page: Page, fake: Fake) -> None:
    ask(page, "The first?")
    page.get_by_role("button", name="New conversation").click()
    expect(page.locator(".welcome")).to_be_visible()
    expect(page.locator("#prompt")).to_be_focused()
    ask(page, "The second?")
    page.reload()
    assert titles(page) == ["The second?", "The first?"]
    expect(page.locator(".said")).to_have_text("The second?")
    page.get_by_role("button", name="The first?", exact=True).click()
    expect(page.locator(".said")).to_have_text("The first?")
    expect(prose(page.locator(".message.assistant"))).to_have_text("A bestiary is a book of beasts.")
    assert page.title() == "The first? – Bestiary"


def test_an_answer_goes_on_while_another_conversation_is_looked_at(page: Page, fake: Fake) -> None:
    fake.script = Script(content("Slow but sure"), hold=1)
    ask(page, "Slow?", wait=False)
    expect(prose(page.locator(".message.assistant"))).to_have_text("Slow")
    page.get_by_role("button", name="New conversation").click()
    expect(page.locator(".live")).to_have_count(1)
    fake.go_on.set()
    expect(page.locator(".live")).to_have_count(0)
    expect(page.locator(".welcome")).to_be_visible()
    page.get_by_role("button", name="Slow?", exact=True).click()
    expect(prose(page.locator(".message.assistant"))).to_have_text("Slow but sure")


def test_a_page_that_is_left_keeps_the_half_answer(page: Page, fake: Fake) -> None:
    fake.script = Script(content("Half an answer"), hold=2)
    expect(prose(ask(page, wait=False))).to_have_text("Half an")
    page.reload()
    expect(prose(page.locator(".message.assistant"))).to_have_text("Half an")
    expect(page.locator(".facts")).to_contain_text("stopped")


def test_deleting_and_clearing_can_be_undone(page: Page, fake: Fake) -> None:
    ask(page, "Keep me?")
    page.get_by_role("button", name="Clear this conversation").click()
    expect(page.locator(".welcome")).to_be_visible()
    assert titles(page) == []
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(".said")).to_have_text("Keep me?")
    page.get_by_role("button", name="Delete “Keep me?”").click()
    expect(page.locator(".welcome")).to_be_visible()
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(".said")).to_have_text("Keep me?")
    assert titles(page) == ["Keep me?"]


def test_a_file_takes_conversations_from_one_browser_to_another(page: Page, fake: Fake, tmp_path: Path) -> None:
    ask(page, "Take me along?")
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Export").click()
    file = tmp_path / "conversations.json"
    waiting.value.save_as(file)
    assert waiting.value.suggested_filename.startswith("bestiary-conversations-")
    page.evaluate("localStorage.clear()")
    page.reload()
    assert titles(page) == []
    page.set_input_files("#import-file", file)
    expect(page.locator(".notice")).to_contain_text("1 conversation imported.")
    page.get_by_role("button", name="Take me along?", exact=True).click()
    expect(prose(page.locator(".message.assistant"))).to_have_text("A bestiary is a book of beasts.")


def test_a_file_that_is_none_is_refused_whole(page: Page) -> None:
    for text, said in [
        ("no JSON", "not JSON"),
        ("null", "no file of conversations"),
        ('{"format": "other", "conversations": []}', "no file of conversations"),
        ('{"format": "bestiary.conversations/1", "conversations": [{"id": "x"}]}', "Conversation 1 of the file is not"),
    ]:
        page.set_input_files("#import-file", {"name": "x", "mimeType": "application/json", "buffer": text.encode()})
        expect(page.locator(".notice")).to_contain_text(said)
    assert titles(page) == []


def test_a_full_browser_is_said_and_nothing_is_thrown_away(page: Page, fake: Fake) -> None:
    ask(page, "Old?")
    page.evaluate(
        "const index = 'bestiary.conversations';"
        "localStorage[index] = localStorage[index].replace(/(?<=size.:)\\d+/, 3_999_900);"
    )
    page.get_by_role("button", name="New conversation").click()
    answer = ask(page, "One too many?")
    expect(page.locator(".notice")).to_contain_text("no room left in this browser")
    expect(prose(answer)).to_have_text("A bestiary is a book of beasts.")
    page.reload()
    assert titles(page) == ["Old?"]
    expect(page.locator(".said")).to_have_text("Old?")


def test_what_others_wrote_into_the_storage_does_no_harm(page: Page, fake: Fake) -> None:
    ask(page, "Before?")
    page.evaluate(
        """() => {
          for (const name of Object.keys(localStorage)) {
            if (name.startsWith("bestiary.conversation.")) localStorage[name] = '{"messages": 7}';
          }
          localStorage["bestiary.sampling"] = "not JSON";
          localStorage["bestiary.theme"] = "<b>";
        }"""
    )
    page.reload()
    expect(page.locator(".welcome")).to_be_visible()
    expect(page.locator("#state")).to_have_text("ready")
