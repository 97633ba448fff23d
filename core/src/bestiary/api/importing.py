"""Importing one object out of a plugin, so that whatever the plugin does becomes an error with its cause."""

from __future__ import annotations

import contextlib
import importlib
import logging
import re
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

from .errors import BrokenPlugin

_VALUE = re.compile(r"(?P<module>[^\W\d]\w*(\.[^\W\d]\w*)*)(\s*:\s*(?P<attribute>[^\W\d]\w*(\.[^\W\d]\w*)*))?")
_CAUSE_CHARS = 400

logger = logging.getLogger("bestiary.registry")
_left_out: set[str] = set()


def split(value: str) -> tuple[str, str] | None:
    """``"module:Class"`` as a pair, ``"module"`` with an empty attribute; None for anything else."""
    match = _VALUE.fullmatch(value.strip())
    return None if match is None else (match["module"], match["attribute"] or "")


def cause(error: BaseException) -> str:
    """The innermost reason on one line: ``ImportError: No module named x``."""
    try:
        text = " ".join(str(error).split())
    except Exception:  # a plugin's exception may be unable to say what it is
        text = "(its message cannot be shown)"
    name = "ImportError" if type(error) is ModuleNotFoundError else type(error).__name__
    return f"{name}: {text}"[:_CAUSE_CHARS] if text else name


def load_object(value: str, origin: str, contexts: Sequence[str] = ()) -> Any:
    """Imports ``"module:Class"`` (or ``"module"``) and returns what it names.

    Args:
        origin: where the reference comes from, for messages: ``"dist foo 1.2"``.
        contexts: import contexts to be in meanwhile; see `entered`.

    Raises:
        BrokenPlugin: for everything the import raises, SystemExit and a KeyboardInterrupt of the plugin's own making
            included; the original is chained. The user's Ctrl-C passes through.
    """
    reference = split(value)
    if reference is None:
        raise BrokenPlugin(f"{value!r:.64} is not module:object (from {origin})", value=value, limit="module:object")
    module_name, attribute = reference
    with isolated(origin, module_name), entered(contexts):
        found: Any = importlib.import_module(module_name)
        for part in attribute.split(".") if attribute else ():
            found = _attribute(found, part)
    return found


def _attribute(owner: Any, name: str) -> Any:
    try:
        return getattr(owner, name)
    except AttributeError as error:
        import difflib

        near = difflib.get_close_matches(name, [str(one) for one in dir(owner)], 1)
        if not near:
            raise
        raise AttributeError(f"{error}; it has {near[0]!r}") from error


@contextlib.contextmanager
def entered(contexts: Sequence[str]) -> Iterator[None]:
    """Within the context managers that ``"module:function"`` references make, in this order.

    One that cannot be entered is left out, with one line in the log: it may be needed by none of what is imported.
    """
    with contextlib.ExitStack() as stack:
        for value in contexts:
            try:
                made = load_object(value, "import context")
                with isolated("import context", value):
                    stack.enter_context(made())
            except BrokenPlugin as error:
                if value not in _left_out:
                    logger.warning("import context %s is left out: %s", value, error.message)
                _left_out.add(value)
        yield


@contextlib.contextmanager
def isolated(origin: str, field: str) -> Iterator[None]:
    """Whatever a plugin's code raises inside becomes BrokenPlugin, the original chained.

    Only the user's own interrupt passes: one that arrives as a signal, even if the plugin swallowed it.
    """
    with _user_interrupts() as raised:
        try:
            yield
        except BrokenPlugin:
            raise
        except BaseException as error:
            if raised:
                raise raised[0] from error
            raise BrokenPlugin(
                f"{cause(error)} (from {origin})",
                field=field,
                fix="reinstall, upgrade or remove the package; --debug shows the traceback",
            ) from error
        if raised:
            raise raised[0]


@contextlib.contextmanager
def _user_interrupts() -> Iterator[list[BaseException]]:
    """The list receives what the handler of a real SIGINT raises; other KeyboardInterrupts are a plugin's own making.

    Outside the main thread the list stays empty: Python runs signal handlers nowhere else.
    """
    raised: list[BaseException] = []
    previous = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(previous):
        yield raised
        return
    handler = previous

    def note(number: int, frame: FrameType | None) -> None:
        try:
            handler(number, frame)
        except BaseException as error:
            raised.append(error)
            raise

    signal.signal(signal.SIGINT, note)
    try:
        yield raised
    finally:
        if signal.getsignal(signal.SIGINT) is note:
            signal.signal(signal.SIGINT, previous)


def location(value: str) -> str | None:
    """The file of an imported ``"module:object"``; None for what has no file or is not imported."""
    reference = split(value)
    module = sys.modules.get(reference[0]) if reference else None
    file = getattr(module, "__file__", None)
    return file if isinstance(file, str) else None
