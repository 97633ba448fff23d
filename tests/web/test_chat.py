"""Asking and answering: what is shown while an answer comes, and what the server is asked."""

from __future__ import annotations

from playwright.sync_api import Page, expect

from .driving import ask, prose, said
from .fake_server import PATIENCE, Fake, Script, content


def test_an_answer_appears_as_it_comes(page: Page, fake: Fake) -> None:
    fake.script = Script(content("First, *second*, third."), hold=1)
    answer = ask(page, wait=False)
    expect(prose(answer)).to_have_text("First,")
    expect(page.get_by_role("button", name="Stop the answer")).to_be_visible()
    fake.go_on.set()
    expect(prose(answer)).to_have_text("First, second, third.")
    expect(prose(answer).locator("em")).to_have_text("second")
    expect(answer.locator(".facts")).to_contain_text("3 tokens")
    expect(answer.locator(".facts")).to_contain_text("8 prompt tokens from the cache")
    expect(page.get_by_role("button", name="Send")).to_be_visible()


def test_stopping_ends_the_request_and_keeps_what_came(page: Page, fake: Fake) -> None:
    fake.script = Script(content("Half an answer"), hold=1)
    stop = page.get_by_role("button", name="Stop the answer")
    for way in (stop.click, lambda: page.keyboard.press("Escape")):
        answer = ask(page, wait=False)
        expect(prose(answer)).to_have_text("Half")
        way()
        expect(answer.locator(".facts")).to_contain_text("stopped")
        assert fake.left.wait(PATIENCE)
        fake.left.clear()
        expect(prose(answer)).to_have_text("Half")
        expect(page.locator("#prompt")).to_be_focused()


def test_what_is_asked_holds_the_conversation_and_no_default(page: Page, fake: Fake) -> None:
    page.click("#tab-settings")
    page.fill("#system", "You are a scribe.")
    ask(page, "One?")
    ask(page, "Two?")
    assert fake.requests[0] == {
        "model": "smollm2",
        "messages": [{"role": "system", "content": "You are a scribe."}, {"role": "user", "content": "One?"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    answered = ("assistant", "A bestiary is a book of beasts.")
    assert said(fake.requests[1])[1:] == [("user", "One?"), answered, ("user", "Two?")]


def test_the_last_answer_can_be_had_again_and_the_last_question_reworded(page: Page, fake: Fake) -> None:
    ask(page, "Why?")
    fake.script = Script(content("Because."))
    answer = page.locator(".message.assistant")
    page.get_by_role("button", name="Answer again").click()
    expect(prose(answer)).to_have_text("Because.")
    page.get_by_role("button", name="Edit and ask again").click()
    field = page.get_by_role("textbox", name="Your message").first
    expect(field).to_have_value("Why?")
    field.press("Escape")
    expect(page.locator(".said")).to_have_text("Why?")
    page.get_by_role("button", name="Edit and ask again").click()
    field.fill("Why not?")
    field.press("Enter")
    expect(page.locator(".said")).to_have_text("Why not?")
    expect(answer).to_have_attribute("aria-busy", "false")
    assert [said(request) for request in fake.requests] == [[("user", text)] for text in ("Why?", "Why?", "Why not?")]


def test_reasoning_is_folded_away_and_not_sent_back(page: Page, fake: Fake) -> None:
    fake.script = Script([{"reasoning_content": "Beasts, "}, {"reasoning": "then **books**."}, *content("A book.")])
    answer = ask(page)
    thought = answer.locator(".reasoning")
    expect(thought.locator("summary")).to_contain_text("Thought for")
    expect(thought.locator(".thought")).to_be_hidden()
    thought.locator("summary").click()
    expect(thought.locator(".thought")).to_have_text("Beasts, then books.")
    expect(prose(answer)).to_have_text("A book.")
    ask(page, "And?")
    assert said(fake.requests[1])[1] == ("assistant", "A book.")


def test_tool_calls_are_shown_and_can_be_answered(page: Page, fake: Fake) -> None:
    fake.script = Script(
        [
            {"tool_calls": [{"index": 0, "id": "a", "function": {"name": "weather", "arguments": ""}}]},
            {"tool_calls": [{"index": 0, "function": {"arguments": '{"city":'}}]},
            {"tool_calls": [{"index": 0, "function": {"arguments": '"Paris"}'}}]},
            {"tool_calls": [{"index": 1, "id": "b", "function": {"name": "time", "arguments": "{}"}}]},
        ],
        finish="tool_calls",
    )
    answer = ask(page, "Weather and time?")
    expect(answer.locator(".call pre").first).to_have_text('{\n  "city": "Paris"\n}')
    page.get_by_label("Result of weather").fill("rain")
    page.get_by_label("Result of time").fill("noon")
    fake.script = Script(content("It rains."))
    page.get_by_role("button", name="Send the results").click()
    expect(prose(page.locator(".message.assistant").last)).to_have_text("It rains.")
    question, called, first, second = fake.requests[1]["messages"]
    assert question["content"] == "Weather and time?"
    assert called["content"] is None
    assert [call["function"] for call in called["tool_calls"]] == [
        {"name": "weather", "arguments": '{"city":"Paris"}'},
        {"name": "time", "arguments": "{}"},
    ]
    assert first == {"role": "tool", "content": "rain", "tool_call_id": "a"}
    assert second == {"role": "tool", "content": "noon", "tool_call_id": "b"}


def test_a_refusal_is_shown_with_code_fix_and_another_try(page: Page, fake: Fake) -> None:
    fake.script = Script(
        status=503, retry_after="2",
        error={"code": "QUEUE_FULL", "message": "256 requests wait already.", "fix": "raise --max-queue"},
    )  # fmt: skip
    answer = ask(page)
    for text in ("256 requests wait already.", "raise --max-queue", "QUEUE_FULL", "asks to wait 2 s"):
        expect(answer.locator(".error")).to_contain_text(text)
    fake.script = Script(content("Now."))
    page.get_by_role("button", name="Try again").click()
    expect(prose(answer)).to_have_text("Now.")
    expect(answer.locator(".error")).to_have_count(0)
    assert said(fake.requests[1]) == said(fake.requests[0])


def test_an_answer_that_breaks_off_says_so_and_keeps_its_text(page: Page, fake: Fake) -> None:
    died = {"code": "engine_dead", "message": "The engine died."}
    for script, shown in [
        (Script(content("Half"), error=died), "engine_dead"),
        (Script(content("Half"), finish=None), "broke off before its end"),
    ]:
        fake.script = script
        answer = ask(page)
        expect(answer.locator(".error")).to_contain_text(shown)
        expect(prose(answer)).to_have_text("Half")


def test_an_answer_at_its_limit_can_go_on(page: Page, fake: Fake) -> None:
    fake.script = Script(content("To be"), finish="length")
    answer = ask(page)
    expect(answer.locator(".facts")).to_contain_text("the limit of tokens was met")
    fake.script = Script(content(" or not."))
    page.get_by_role("button", name="Go on").click()
    expect(prose(answer)).to_have_text("To be or not.")
    assert fake.requests[1]["continue_final_message"] is True
    assert fake.requests[1]["add_generation_prompt"] is False
    assert said(fake.requests[1])[-1] == ("assistant", "To be")


def test_the_first_visit_offers_something_to_ask(page: Page, fake: Fake) -> None:
    examples = page.locator(".examples button")
    expect(examples).to_have_count(4)
    text = examples.first.locator("span").inner_text()
    examples.first.click()
    expect(page.locator(".message.assistant")).to_have_attribute("aria-busy", "false")
    assert said(fake.requests[0]) == [("user", text)]
    expect(page.locator(".welcome")).to_have_count(0)


def test_nothing_in_an_answer_becomes_markup_or_a_request(page: Page, fake: Fake) -> None:
    markup = '<img src=x onerror="document.title=1"><script>document.title=2</script>'
    text = f"{markup} ![a](http://127.0.0.1:9/x.png) [b](javascript:document.title=3)"
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    fake.script = Script(content(text))
    answer = ask(page)
    expect(prose(answer)).to_contain_text(markup)
    assert prose(answer).locator("img, script").count() == 0
    assert [link.get_attribute("href") for link in prose(answer).locator("a").all()] == ["http://127.0.0.1:9/x.png"]
    assert not [address for address in asked if ":9/" in address]
    assert "Bestiary" in page.title()


def test_copying_gives_what_the_model_wrote(page: Page, fake: Fake) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    fake.script = Script(content("Run *this*:\n\n```sh\necho hi\n```"))
    answer = ask(page)
    clipboard = "navigator.clipboard.readText()"
    page.get_by_role("button", name="Copy this code").click()
    expect(page.locator("#announcer")).to_have_text("Copied")
    assert page.evaluate(clipboard) == "echo hi"
    answer.get_by_role("button", name="Copy the answer").click()
    page.wait_for_function(f"async () => (await {clipboard}).startsWith('Run')")
    assert page.evaluate(clipboard) == "Run *this*:\n\n```sh\necho hi\n```"
    page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")  # as without https
    page.get_by_role("button", name="Copy this code").click()
    page.locator("#prompt").press("Control+V")
    expect(page.locator("#prompt")).to_have_value("echo hi")
