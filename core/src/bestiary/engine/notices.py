"""Things the user should know that are not errors: one line each, through logging, so on stderr by default."""

from __future__ import annotations

import logging
import sys
import traceback
from contextlib import suppress

logger = logging.getLogger("bestiary")


def notice(text: str) -> None:
    """Say one thing, in one line."""
    logger.warning("%s", text)


def last_words(cause: BaseException) -> None:
    """What a process ends of, with its traceback, on standard error. On a full disk nobody reads it, and whoever waits
    for the process is to be told all the same."""
    with suppress(OSError):
        traceback.print_exception(cause, file=sys.stderr)
