"""A headless Chromium, one for all tests of this folder, and a fake server for each.

Without a browser the tests are skipped, and the summary says so in a line that cannot be overlooked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from . import chromium
from .fake_server import PATIENCE, Fake, served

skipped: list[str] = []
expect.set_options(timeout=PATIENCE * 1000)


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """(Not for the session: while Playwright's synchronous face is open, this thread can run no other event loop.)"""
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


@pytest.fixture(scope="package")
def server() -> Iterator[tuple[Fake, str]]:
    fake = Fake()
    with served(fake) as address:
        yield fake, address


@pytest.fixture
def fake(server: tuple[Fake, str]) -> Fake:
    """What the server says; as new for every test."""
    server[0].reset()
    return server[0]


@pytest.fixture
def url(server: tuple[Fake, str], fake: Fake) -> str:
    return server[1]


class Opened:
    """Pages, each in a profile of its own, and what their consoles complained of."""

    def __init__(self, browser: Browser) -> None:
        self.browser = browser
        self.contexts: list[BrowserContext] = []
        self.complaints: list[str] = []

    def open(self, **options: Any) -> Page:
        """An empty page; options are those of a context."""
        context = self.browser.new_context(**{"viewport": {"width": 1280, "height": 800}} | options)
        self.contexts.append(context)
        context.set_default_timeout(PATIENCE * 1000)
        page = context.new_page()
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda said: self.complaints.append(said.text) if said.type == "error" else None)
        return page

    def check(self) -> None:
        """A status of 401 or 503 is an answer like another for the page; the browser itself notes it as an error."""
        complaints, self.complaints = self.complaints, []
        assert [text for text in complaints if not text.startswith("Failed to load resource")] == []

    def close(self) -> None:
        for context in self.contexts:
            context.close()


@pytest.fixture
def new_page(browser: Browser, url: str) -> Iterator[Callable[..., Page]]:
    """Opens the page in a profile of its own. Any complaint fails the test."""
    opened = Opened(browser)

    def open_page(**options: Any) -> Page:
        page = opened.open(**options)
        page.goto(url)
        return page

    yield open_page
    opened.close()
    opened.check()


@pytest.fixture(scope="package")
def shared(browser: Browser) -> Iterator[tuple[Opened, Page]]:
    opened = Opened(browser)
    yield opened, opened.open()
    opened.close()


@pytest.fixture
def page(shared: tuple[Opened, Page], url: str) -> Iterator[Page]:
    """The page of a server that is ready, on a first visit. (One profile, emptied: a new one takes a second.)"""
    opened, shown = shared
    shown.goto(f"{url}/web/logo.svg")  # of the same origin, and without a script that would keep something
    shown.evaluate("localStorage.clear(); sessionStorage.clear()")
    shown.goto(url)
    expect(shown.locator("#state")).to_have_text("ready")
    yield shown
    shown.unroute_all()
    opened.check()
