"""A headless Chromium, one for all tests of this folder, and a fake server for each.

Without a browser the tests are skipped, and the summary says so in a line that cannot be overlooked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from . import chromium
from .fake_server import PATIENCE, Fake, served

skipped: list[str] = []
expect.set_options(timeout=PATIENCE * 1000)


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """(Not for the session: while Playwright's synchronous face is open, nothing else in this thread may run a loop.)"""
    path = chromium.find()
    if path is None:
        skipped.append(chromium.MISSING)
        pytest.skip(chromium.MISSING)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=chromium.ARGUMENTS)
        yield started
        started.close()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for line in dict.fromkeys(skipped):
        terminalreporter.section("BROWSER", sep="!", red=True, bold=True)
        terminalreporter.line(line, red=True, bold=True)


@pytest.fixture
def fake() -> Fake:
    return Fake()


@pytest.fixture
def url(fake: Fake) -> Iterator[str]:
    with served(fake) as address:
        yield address


@pytest.fixture
def new_page(browser: Browser, url: str) -> Iterator[Callable[..., Page]]:
    """Opens the page in a browser profile of its own; options are those of a context. Any complaint fails the test."""
    complaints: list[str] = []
    contexts = []

    def open_page(**options: Any) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}} | options)
        contexts.append(context)
        context.set_default_timeout(PATIENCE * 1000)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    # A status of 401 or 503 is an answer like another for the page; the browser's own console notes it as an error.
    assert [text for text in complaints if not text.startswith("Failed to load resource")] == []


@pytest.fixture
def page(new_page: Callable[..., Page]) -> Page:
    opened = new_page()
    expect(opened.locator("#state")).to_have_text("ready")
    return opened
