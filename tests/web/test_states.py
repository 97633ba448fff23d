"""What the page says of the server, whatever state it is in, and what it does about a missing key."""

from __future__ import annotations

from collections.abc import Callable

from playwright.sync_api import Page, expect

from .driving import ask, look_again, prose, said
from .fake_server import Fake, Script, content, stats


def watched(page: Page) -> list[str]:
    """The addresses that the page asks for from now on."""
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    return asked


def test_every_state_is_named_and_explained(page: Page, fake: Fake) -> None:
    for state, word, explained in [
        ("stalled", "stalled", "no progress"),
        ("restarting", "restarting", "is being started again"),
        ("failed", "failed", "The server's log names the cause"),
        ("draining", "shutting down", "takes nothing new"),
        ("closed", "closed", "Start `bestiary serve` again"),
        ("hibernating", "hibernating", "says that it is hibernating"),
    ]:
        fake.state = state
        look_again(page)
        expect(page.locator("#state")).to_have_text(word)
        expect(page.locator("#banner")).to_contain_text(explained)
    fake.state = "ready"
    look_again(page)
    expect(page.locator("#state")).to_have_text("ready")
    expect(page.locator("#banner")).to_be_empty()


def test_a_question_waits_until_the_model_is_there(fake: Fake, new_page: Callable[..., Page]) -> None:
    model, fake.info["model"] = fake.info["model"], None
    fake.info["server"]["phases"] = {"import": 0.9}
    models, fake.models = fake.models, []
    fake.state = "starting"
    page = new_page()
    expect(page.locator("#state")).to_have_text("starting")
    expect(page.locator("#banner")).to_contain_text("your message is sent as soon as it is ready")
    expect(page.locator("#banner")).to_contain_text("Done so far: import")
    answer = ask(page, wait=False)
    expect(answer.locator(".waiting")).to_be_visible()
    assert fake.requests == []
    fake.info["model"], fake.models, fake.state = model, models, "ready"
    expect(prose(answer)).to_have_text("A bestiary is a book of beasts.")
    assert fake.requests[0]["model"] == "smollm2"
    expect(page.locator("#tab-model-panel")).to_contain_text("bestiary-llama")


def test_a_question_is_sent_again_when_the_server_was_not_ready_after_all(page: Page, fake: Fake) -> None:
    fake.script = Script(status=503, error={"code": "ENGINE_NOT_READY", "message": "the engine is starting"})
    with page.expect_response("**/v1/chat/completions"):
        answer = ask(page, wait=False)
    page.wait_for_function("() => document.querySelector('.message.assistant .waiting')?.checkVisibility()")
    assert not answer.locator(".error").count()
    fake.script = Script(content("Ready now."))
    expect(prose(answer)).to_have_text("Ready now.")
    assert said(fake.requests[0]) == said(fake.requests[-1])
    assert len(fake.requests) > 1


def test_a_question_that_waits_can_be_taken_back(fake: Fake, new_page: Callable[..., Page]) -> None:
    fake.state = "starting"
    page = new_page()
    expect(page.locator("#state")).to_have_text("starting")
    answer = ask(page, wait=False)
    expect(answer.locator(".waiting")).to_be_visible()
    page.keyboard.press("Escape")
    expect(answer.locator(".facts")).to_contain_text("stopped")
    assert fake.requests == []


def test_a_server_that_is_gone_and_comes_back(page: Page, fake: Fake) -> None:
    fake.down = True
    look_again(page)
    expect(page.locator("#state")).to_have_text("no answer")
    answer = ask(page)
    expect(answer.locator(".error")).to_contain_text("status 502 and no explanation")
    page.route("**/v1/chat/completions", lambda route: route.abort())
    page.get_by_role("button", name="Try again").click()
    expect(answer.locator(".error")).to_contain_text("UNREACHABLE")
    expect(answer.locator(".error")).to_contain_text("`bestiary serve` is still running")
    page.unroute("**/v1/chat/completions")
    fake.down = False
    look_again(page)
    expect(page.locator("#state")).to_have_text("ready")
    page.get_by_role("button", name="Try again").click()
    expect(prose(answer)).to_have_text("A bestiary is a book of beasts.")


def test_a_server_without_statistics_can_be_talked_with(fake: Fake, new_page: Callable[..., Page]) -> None:
    page = new_page(service_workers="block")
    page.route("**/server/*", lambda route: route.fulfill(status=404, body="{}"))
    page.reload()
    expect(page.locator("#state")).to_have_text("state unknown")
    expect(page.locator("#banner")).to_be_empty()
    expect(prose(ask(page))).to_have_text("A bestiary is a book of beasts.")
    expect(page.locator("#tab-live-panel")).to_contain_text("has told nothing about itself")


def test_a_key_is_asked_for_once_and_kept_for_the_tab_only(fake: Fake, new_page: Callable[..., Page]) -> None:
    fake.key = "open sesame"
    page = new_page()
    dialog = page.locator("#key-dialog")
    expect(dialog).to_be_visible()
    expect(page.get_by_label("API key", exact=True)).to_be_focused()
    expect(dialog.locator("#key-refused")).to_be_hidden()
    page.get_by_label("API key", exact=True).fill("wrong")
    page.keyboard.press("Enter")
    expect(dialog).to_be_hidden()
    expect(page.locator("#banner")).to_contain_text("asks for an API key")
    page.get_by_role("button", name="Enter the key").click()
    expect(dialog.locator("#key-refused")).to_be_visible()
    page.get_by_label("API key", exact=True).fill("open sesame")
    page.get_by_role("button", name="Use this key").click()
    expect(page.locator("#state")).to_have_text("ready")
    expect(prose(ask(page))).to_have_text("A bestiary is a book of beasts.")
    assert page.evaluate("Object.entries(localStorage).flat().join()").count("sesame") == 0
    assert page.evaluate("Object.entries(sessionStorage).flat().join()").count("sesame") == 1
    page.reload()
    expect(page.locator("#state")).to_have_text("ready")


def test_without_a_key_the_page_waits_and_a_question_asks_again(fake: Fake, new_page: Callable[..., Page]) -> None:
    fake.key = "open sesame"
    page = new_page()
    page.get_by_role("button", name="Not now").click()
    expect(page.locator("#state")).to_have_text("locked")
    look_again(page)
    expect(page.locator("#key-dialog")).to_be_hidden()
    asked = watched(page)
    page.wait_for_timeout(1500)
    assert asked == []  # nor does it try every second, which would fill the server's log
    answer = ask(page, wait=False)
    page.get_by_label("API key", exact=True).fill("open sesame")
    page.keyboard.press("Enter")
    expect(prose(answer)).to_have_text("A bestiary is a book of beasts.")
    assert "model" not in fake.requests[0]  # the list of models was locked as well


def test_live_pictures_follow_the_statistics(fake: Fake, new_page: Callable[..., Page]) -> None:
    fake.stats = lambda: stats(9_999_999)
    page = new_page()
    page.click("#tab-live")
    panel = page.locator("#tab-live-panel")
    for t, generated in [(10_000_000, 1000), (10_000_002, 1050)]:
        fake.stats = lambda t=t, generated=generated: stats(
            t, running=3, waiting=2, generated=generated, prompt=100, used=1024
        )
        look_again(page)
        page.wait_for_function(
            f"() => document.querySelector('#tab-live-panel dl').textContent.includes('{generated:,}')"
        )
    speed, requests = panel.locator("svg[role=img]").nth(0), panel.locator("svg[role=img]").nth(1)
    expect(panel.locator("figure").nth(0).locator(".now")).to_have_text("25")
    expect(speed).to_have_attribute(
        "aria-label",
        "Tokens per second over the last two minutes. generated: now 25, between 25 and 1,000.",
    )
    expect(requests).to_have_attribute(
        "aria-label",
        "Requests over the last two minutes. running: now 3, between 0 and 3; waiting: now 2, between 0 and 2.",
    )
    expect(panel.get_by_role("img", name="KV cache in use: 25 %. 1,024 of 4,096 blocks of 16 tokens")).to_be_visible()
    expect(panel.get_by_role("img", name="Prefix cache hits: 62 %")).to_be_visible()
    expect(panel.get_by_role("row", name="First token 82 ms 210 ms 640 ms")).to_be_visible()


def test_no_rate_spans_a_restart_of_the_engine(page: Page, fake: Fake) -> None:
    page.click("#tab-live")
    fake.stats = lambda: stats(20_000_000, generated=5000)
    look_again(page)
    page.wait_for_function("() => document.querySelector('#tab-live-panel dl').textContent.includes('5,000')")
    fake.stats = lambda: stats(20_000_001, generated=10, restarts=1)
    look_again(page)
    page.wait_for_function(
        "() => document.querySelector('#tab-live-panel dl').textContent.includes('Restarts of the engine1')"
    )
    expect(page.locator("#tab-live-panel figure").first.locator(".now")).to_have_text("–")


def test_the_page_asks_nothing_while_it_is_hidden(page: Page, fake: Fake) -> None:
    page.evaluate("Object.defineProperty(document, 'hidden', { value: true, configurable: true })")
    look_again(page)
    asked = watched(page)
    fake.script = Script(content("Still here."))
    expect(prose(ask(page))).to_have_text("Still here.")
    page.wait_for_timeout(1500)
    assert [address for address in asked if "/server/" in address] == []
