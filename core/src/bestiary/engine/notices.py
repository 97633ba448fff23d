"""Things the user should know that are not errors: one line each, through logging, so on stderr by default."""

from __future__ import annotations

import logging

logger = logging.getLogger("bestiary")


def notice(text: str) -> None:
    """Say one thing, in one line."""
    logger.warning("%s", text)
