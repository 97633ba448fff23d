"""`init_logger`: a logger below "bestiary", with the methods that say a thing once."""

from __future__ import annotations

import logging
from typing import Any


class OnceLogger(logging.LoggerAdapter[logging.Logger]):
    """A logger whose ``…_once`` methods say each text with the same arguments once."""

    def __init__(self, logger: logging.Logger) -> None:
        super().__init__(logger, {})
        self._said: set[tuple[int, str, str]] = set()

    def _once(self, level: int, text: str, args: tuple[object, ...]) -> None:
        key = (level, text, repr(args))
        if key not in self._said:
            self._said.add(key)
            self.log(level, text, *args)

    def debug_once(self, text: str, *args: object, scope: Any = None) -> None:
        self._once(logging.DEBUG, text, args)

    def info_once(self, text: str, *args: object, scope: Any = None) -> None:
        self._once(logging.INFO, text, args)

    def warning_once(self, text: str, *args: object, scope: Any = None) -> None:
        self._once(logging.WARNING, text, args)


def init_logger(name: str) -> OnceLogger:
    """The logger of a model file."""
    return OnceLogger(logging.getLogger(f"bestiary.vllm.{name}"))
