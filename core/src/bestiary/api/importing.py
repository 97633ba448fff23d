"""Importing one object out of a plugin, so that whatever the plugin does becomes an error with its cause."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import re
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from .errors import BrokenPlugin

_VALUE = re.compile(r"(?P<module>[^\W\d]\w*(\.[^\W\d]\w*)*)(\s*:\s*(?P<attribute>[^\W\d]\w*(\.[^\W\d]\w*)*))?")
_CAUSE_CHARS = 400


def split(value: str) -> tuple[str, str] | None:
    """``"module:Class"`` as a pair, ``"module"`` with an empty attribute; None for anything else."""
    match = _VALUE.fullmatch(value.strip())
    return None if match is None else (match["module"], match["attribute"] or "")


def cause(error: BaseException) -> str:
    """The innermost reason on one line: ``ImportError: No module named x``."""
    text = " ".join(str(error).split())
    name = "ImportError" if type(error) is ModuleNotFoundError else type(error).__name__
    return f"{name}: {text}"[:_CAUSE_CHARS] if text else name


def load_object(value: str, origin: str) -> Any:
    """Imports ``"module:Class"`` (or ``"module"``) and returns what it names.

    Args:
        origin: where the reference comes from, for messages: ``"dist foo 1.2"``.

    Raises:
        BrokenPlugin: for everything the import raises, SystemExit and a KeyboardInterrupt of the plugin's own making
            included; the original is chained. The user's Ctrl-C passes through.
    """
    reference = split(value)
    if reference is None:
        raise BrokenPlugin(f"{value!r:.64} is not module:object (from {origin})", value=value, limit="module:object")
    module_name, attribute = reference
    with _user_interrupts() as interrupted:
        try:
            found: Any = importlib.import_module(module_name)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) and interrupted:
                raise
            raise BrokenPlugin(
                f"{cause(error)} (from {origin})",
                field=module_name,
                fix="reinstall or remove the package; --debug shows the traceback",
            ) from error
    for part in attribute.split(".") if attribute else ():
        found = _attribute(found, part, module_name, origin)
    return found


def _attribute(owner: Any, name: str, module: str, origin: str) -> Any:
    try:
        return getattr(owner, name)
    except Exception as error:  # a module's __getattr__ is plugin code too
        near = difflib.get_close_matches(name, [str(one) for one in dir(owner)], 1)
        hint = f"; it has {near[0]!r}" if near else ""
        raise BrokenPlugin(f"{cause(error)}{hint} (from {origin})", field=module, value=name) from error


@contextlib.contextmanager
def _user_interrupts() -> Iterator[list[int]]:
    """The list fills when a real SIGINT arrives; a KeyboardInterrupt without one was raised by the plugin."""
    received: list[int] = []
    previous = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(previous):
        yield received
        return
    handler = previous

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        handler(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield received
    finally:
        if signal.getsignal(signal.SIGINT) is note:
            signal.signal(signal.SIGINT, previous)


def location(value: str) -> str | None:
    """The file of an imported ``"module:object"``; None for what has no file or is not imported."""
    reference = split(value)
    module = sys.modules.get(reference[0]) if reference else None
    file = getattr(module, "__file__", None)
    return file if isinstance(file, str) else None
