"""The page with a real server and a real model: that both mean the same by what they say to each other."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator

import httpx
import psutil
import pytest
from playwright.sync_api import Browser, Page, expect

from .driving import ask, prose

pytestmark = pytest.mark.full
SLOW = 180_000  # milliseconds: loading and answering on a small, busy machine
KEY = "open-sesame"


@pytest.fixture(scope="module")
def started() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server that has just begun to load its model, and its address."""
    command = [sys.executable, "-m", "bestiary", "serve", "smollm2", "--port", "0", "--api-key", KEY]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                break
        else:
            pytest.fail("the server did not start:\n" + "".join(said))
        yield process, found[0]
        process.send_signal(signal.SIGINT)
        process.stdout.read()


@pytest.fixture
def real(browser: Browser, started: tuple[subprocess.Popen[str], str]) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.set_default_timeout(SLOW)
    page = context.new_page()
    page.goto(started[1])
    yield page
    context.close()


def unlock(page: Page) -> None:
    page.get_by_label("API key", exact=True).fill(KEY)
    page.keyboard.press("Enter")


def test_a_newcomer_asks_at_once_and_is_answered(real: Page) -> None:
    unlock(real)
    real.evaluate("localStorage['bestiary.sampling'] = '{\"temperature\": \"0\"}'")
    real.reload()
    answer = ask(real, "What is the capital of France?", wait=False)
    expect(prose(answer)).to_contain_text("Paris", timeout=SLOW)
    expect(answer).to_have_attribute("aria-busy", "false", timeout=SLOW)
    expect(answer.locator(".facts")).to_contain_text("tokens/s")
    expect(real.locator("#state")).to_have_text("ready")
    expect(real.locator("#tab-live-panel")).to_contain_text("Requests finished1", timeout=SLOW)
    real.click("#tab-model")
    for fact in ("LlamaForCausalLM", "bestiary-llama", "8,192 tokens", "LoRA", "load the model"):
        expect(real.locator("#tab-model-panel")).to_contain_text(fact)
    real.click("#tab-settings")
    expect(real.get_by_label("Temperature", exact=True)).to_have_attribute("placeholder", "1")


def test_every_setting_is_one_that_the_server_knows(real: Page) -> None:
    unlock(real)
    real.click("#tab-settings")
    for label, value in {
        "Temperature": "0.5", "Top p": "0.9", "Top k": "40", "Min p": "0.05", "Longest answer": "8", "Seed": "7",
        "Presence penalty": "0.5", "Frequency penalty": "-0.5", "Repetition penalty": "1.1",
    }.items():  # fmt: skip
        real.get_by_label(label, exact=True).fill(value)
    real.get_by_label("Stop at").fill("QQQ")
    warned: list[str | None] = []
    real.on(
        "response",
        lambda response: warned.append(response.headers.get("warning")) if "/chat/" in response.url else None,
    )
    answer = ask(real, "Count to a hundred.", wait=False)
    expect(answer.locator(".facts")).to_contain_text("8 tokens", timeout=SLOW)
    expect(answer.locator(".facts")).to_contain_text("the limit of tokens was met")
    before = prose(answer).inner_text()
    real.get_by_role("button", name="Go on").click()
    expect(answer).to_have_attribute("aria-busy", "false", timeout=SLOW)
    assert prose(answer).inner_text().startswith(before)
    assert len(prose(answer).inner_text()) > len(before)
    assert warned == [None, None]


def test_a_refusal_names_code_and_fix(real: Page) -> None:
    unlock(real)
    real.click("#tab-settings")
    real.get_by_text("More fields of the request").click()
    real.get_by_label("More fields of the request, as JSON").fill('{"best_of": 3}')
    answer = ask(real, "Hello", wait=False)
    expect(answer.locator(".error")).to_contain_text("UNSUPPORTED_PARAMETER", timeout=SLOW)
    expect(answer.locator(".error")).to_contain_text("best_of")


def test_a_dead_engine_is_said_and_the_page_goes_on_after_it(
    real: Page, started: tuple[subprocess.Popen[str], str]
) -> None:
    unlock(real)
    expect(real.locator("#state")).to_have_text("ready", timeout=SLOW)
    answer = ask(real, "Tell me a very long tale of a dragon.", wait=False)
    expect(prose(answer)).not_to_be_empty(timeout=SLOW)
    engine = max(psutil.Process(started[0].pid).children(), key=lambda child: child.memory_info().rss)
    os.kill(engine.pid, signal.SIGKILL)
    expect(answer.locator(".error")).to_contain_text("engine_dead", timeout=SLOW)
    expect(real.locator("#banner")).not_to_be_empty()  # restarting, or already loading the model
    real.get_by_role("button", name="Try again").click()
    expect(prose(answer)).not_to_be_empty(timeout=SLOW)
    real.keyboard.press("Escape")
    expect(real.locator("#state")).to_have_text("ready")


def test_the_page_needs_no_key_and_all_else_does(started: tuple[subprocess.Popen[str], str]) -> None:
    with httpx.Client(base_url=started[1], trust_env=False) as client:
        assert client.get("/").status_code == client.get("/web/app.js").status_code == 200
        for path in ("/v1/models", "/server/info", "/server/stats", "/web/nothing"):
            assert client.get(path).status_code == 401
        page = client.get("/")
        assert page.headers.get_list("x-content-type-options")[0] == "nosniff"
        assert "default-src 'self'" in page.headers["content-security-policy"]
