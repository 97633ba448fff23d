"""What a person does with the page, in one call each."""

from __future__ import annotations

from typing import Any

from playwright.sync_api import Locator, Page, expect


def ask(page: Page, text: str = "What is a bestiary?", *, wait: bool = True) -> Locator:
    """Send a message; the answer's element, complete unless told not to wait."""
    page.fill("#prompt", text)
    page.click("#send")
    answer = page.locator(".message.assistant").last
    if wait:
        expect(answer).to_have_attribute("aria-busy", "false")
    return answer


def prose(answer: Locator) -> Locator:
    return answer.locator(".prose")


def look_again(page: Page) -> None:
    """Let the page ask the server at once, not at the next second."""
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")


def said(request: dict[str, Any]) -> list[tuple[str, str | None]]:
    """Roles and texts of the messages that a request carried."""
    return [(message["role"], message["content"]) for message in request["messages"]]


def titles(page: Page) -> list[str]:
    """Of the conversations in the list."""
    return [text.strip() for text in page.locator("#conversations .title").all_inner_texts()]
