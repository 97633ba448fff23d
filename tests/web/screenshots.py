"""Writes the pictures of docs/web.md: `scripts/screenshots [URL]`, of the server at URL, or of the tests' fake one.

A real server is given some work meanwhile, so that the live pictures show something. Fonts are those of the system;
where Inter, EB Garamond and JetBrains Mono are installed, they stand for what a desktop calls its own.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from playwright.sync_api import Browser, Page, expect, sync_playwright

from . import chromium
from .fake_server import Fake, Script, content, served

IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"
LARGEST = 200_000  # bytes of a picture
PATIENCE = 180_000  # milliseconds: a small machine answers slowly
WATCHED = 25_000  # milliseconds that the live pictures get
QUESTION = "What is a bestiary? Name three of its beasts, in a numbered list."
ANSWER = """A **bestiary** is a medieval book of beasts, real and imagined.
Each has a picture, a few habits, and a *moral*.

1. The **pelican** feeds her young with her own blood.
2. The **griffin** guards gold, and finds it where nobody looks.
3. The **unicorn** can be caught by nobody who hurries.

```python
def is_beast(name: str) -> bool:
    return name.lower() in {"pelican", "griffin", "unicorn"}
```

| beast | seen by | moral |
|:------|:--------|------:|
| pelican | fishers | charity |
| griffin | miners | vigilance |
"""
FONTS = """<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig><include>/etc/fonts/fonts.conf</include>{}</fontconfig>"""
FONT = """<match target="pattern"><test name="family"><string>{}</string></test>
<edit name="family" mode="prepend" binding="strong"><string>{}</string></edit></match>"""
FAMILIES = {"system-ui": "Inter", "sans-serif": "Inter", "ui-serif": "EB Garamond", "ui-monospace": "JetBrains Mono"}


@contextmanager
def desktop_fonts() -> Iterator[None]:
    """Name fonts as a desktop would; what is not installed is passed over by fontconfig."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "fonts.conf")
        file.write_text(FONTS.format("\n".join(FONT.format(*pair) for pair in FAMILIES.items())))
        os.environ["FONTCONFIG_FILE"] = str(file)
        try:
            yield
        finally:
            del os.environ["FONTCONFIG_FILE"]


@contextmanager
def busy(url: str) -> Iterator[None]:
    """Some conversations of other people."""
    over = threading.Event()

    def talk(number: int) -> None:
        messages = [{"role": "user", "content": f"Tell me a tale of {number} dragons and a well-read knight."}]
        while not over.is_set():
            httpx.post(f"{url}/v1/chat/completions", json={"messages": messages, "max_tokens": 40}, timeout=PATIENCE)

    threads = [threading.Thread(target=talk, args=(number,)) for number in range(2, 5)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def opened(browser: Browser, url: str, **options: Any) -> Page:
    context = browser.new_context(**options)
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.goto(url)
    expect(page.locator("#state")).to_have_text("ready", timeout=PATIENCE)
    return page


def conversation(page: Page) -> None:
    page.evaluate("localStorage['bestiary.sampling'] = JSON.stringify({ temperature: '0', max_tokens: '220' })")
    page.reload()
    page.fill("#prompt", QUESTION)
    page.click("#send")
    expect(page.locator(".message.assistant")).to_have_attribute("aria-busy", "false", timeout=PATIENCE)
    page.wait_for_timeout(WATCHED)


def taken(page: Page, name: str) -> None:
    path = IMAGES / f"web-{name}.png"
    page.screenshot(path=path)
    size = path.stat().st_size
    print(f"{path.name}: {size // 1000} KB")
    if size > LARGEST:
        sys.exit(f"{path.name} is larger than {LARGEST // 1000} KB")


def take_all(url: str) -> None:
    with desktop_fonts(), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium.find(), args=chromium.ARGUMENTS)
        wide = {"viewport": {"width": 1280, "height": 800}}
        page = opened(browser, url, color_scheme="light", **wide)
        conversation(page)
        taken(page, "desktop")
        page.emulate_media(color_scheme="dark")
        page.click("#tab-model")
        taken(page, "dark")
        phone: dict[str, Any] = {
            "viewport": {"width": 360, "height": 720},
            "device_scale_factor": 2,
            "has_touch": True,
            "is_mobile": True,
        }
        taken(opened(browser, url, color_scheme="light", **phone), "phone")
        browser.close()


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    if len(sys.argv) > 1:
        with busy(sys.argv[1].rstrip("/")):
            take_all(sys.argv[1])
        return
    fake = Fake()
    fake.script = Script(content(ANSWER), pause=0.04)
    with served(fake) as url:
        take_all(url)


if __name__ == "__main__":
    main()
