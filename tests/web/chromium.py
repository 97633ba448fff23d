"""Which browser the tests of the page drive, and how it is started."""

from __future__ import annotations

import os
import shutil

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]  # it shows our own page only, often to root
MISSING = (
    "no Chromium here: the tests of the web page were SKIPPED. "
    "scripts/browser installs one; BESTIARY_BROWSER=/path/to/chromium names one"
)


def find() -> str | None:
    """The program's path; BESTIARY_BROWSER decides where it is set ("none": no browser)."""
    chosen = os.environ.get("BESTIARY_BROWSER")
    if chosen:
        return shutil.which(chosen)
    return next((path for name in NAMES if (path := shutil.which(name))), None)
