"""One line for each thing that an author should know, once a process."""

from __future__ import annotations

import logging

logger = logging.getLogger("bestiary")
_said: set[str] = set()


def say_once(text: str) -> None:
    """Say it, unless it was said."""
    if text not in _said:
        _said.add(text)
        logger.warning("%s", text)


def old_keyword(call: str, keyword: str, now: str) -> None:
    """A keyword argument of older versions was given to `call`."""
    say_once(f"{call}({keyword}=) is an older spelling: {now}")


def forget() -> None:
    """Everything may be said again."""
    _said.clear()
