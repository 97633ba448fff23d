"""Exceptions as people and programs see them: text on standard error, data on standard output, an exit code."""

from __future__ import annotations

import errno
import sys
import traceback
from collections.abc import Callable
from functools import partial

import click

from bestiary.api.errors import BestiaryError, EngineError, UsageError

from .output import clean, say, write_json, write_json_line
from .settings import COMMAND_LINE, origin_of
from .streams import abandon, flush, give_up_stdout, is_lost

INTERRUPTED, INTERNAL = 130, 70
_EXHAUSTED = {
    errno.EMFILE: "let it open more files: ulimit -n 1024",
    errno.ENFILE: "close other programs: this machine has too many open files",
    errno.EAGAIN: "let it start more processes: ulimit -u",
    errno.ENOSPC: "free space on the disk",
    errno.EDQUOT: "free space on the disk",
    errno.ENOMEM: "free memory",
}
"""What of → what to do."""


def report(error: BaseException, *, debug: bool, as_json: bool, on_one_line: bool = False) -> int:
    """Show `error` and return the exit code.

    Args:
        debug: print the traceback first. as_json: write ``{"error": …}`` to standard output as well; `on_one_line`
            where everything else there is JSON Lines.
    """
    if isinstance(error, click.Abort):
        return INTERRUPTED
    if isinstance(error, OSError) and is_lost(sys.stdout, error):
        return give_up_stdout(error, say)
    if isinstance(error, OSError) and is_lost(sys.stderr, error):
        abandon(sys.stderr)
        return 1
    if debug:
        traceback.print_exception(error)
    known = _as_bestiary_error(error)
    if known is not None:
        document, text, code = known.as_dict(), clean(str(known)), known.exit_code
    else:
        message = f"{type(error).__name__}: {clean(str(error)).partition(chr(10))[0]}"
        document = {**BestiaryError(message).as_dict(), "code": "INTERNAL"}
        text, code = f"internal error: {message}" + ("" if debug else "; --debug shows the traceback"), INTERNAL
    say(text + _where_to_read_on(document["code"]))
    write = write_json_line if on_one_line else write_json
    return _last_words(partial(write, {"error": document}) if as_json else None, code)


def _where_to_read_on(code: object) -> str:
    """A person at a terminal is told where more is written; a log is not."""
    if code in (UsageError.code, "INTERNAL") or not sys.stderr.isatty():
        return ""
    from bestiary.api.catalogue import find

    return "" if find(str(code)) is None else f"\n  more:  bestiary explain {code}"


def _last_words(write: Callable[[], None] | None, code: int) -> int:
    """Write the error's document, and what was written before the failure; returns the exit code."""
    try:
        if write is not None:
            write()
        lost = flush(sys.stdout)
    except OSError as error:
        lost = error
    if lost is not None:
        give_up_stdout(lost, say)
    return code


def _as_bestiary_error(error: BaseException) -> BestiaryError | None:
    """Click's complaints about the command line are usage errors like our own; what the system has no more of is no
    defect of ours."""
    if isinstance(error, BestiaryError):
        return error
    if isinstance(error, OSError) and error.errno in _EXHAUSTED:
        return EngineError(
            f"the system has no more: {error.strerror}", code="SYSTEM_LIMIT", fix=_EXHAUSTED[error.errno]
        )
    if not isinstance(error, click.ClickException):
        return None
    context = getattr(error, "ctx", None)
    fix = None if context is None else f"{context.command_path} --help"
    parameter = getattr(error, "param", None)
    origin = None if context is None or parameter is None else origin_of(context, parameter)
    where = "" if origin in (None, COMMAND_LINE) else f" (from {origin})"
    return UsageError(error.format_message() + where, fix=fix)
