"""Exceptions as people and programs see them: text on standard error, data on standard output, an exit code."""

from __future__ import annotations

import errno
import os
import sys
import traceback

import click

from bestiary.api.errors import BestiaryError, UsageError

from .output import clean, say, write_json

INTERRUPTED, INTERNAL = 130, 70


def report(error: Exception, *, debug: bool, as_json: bool) -> int:
    """Show `error` and return the exit code.

    Args:
        debug: print the traceback first. as_json: write ``{"error": …}`` to standard output as well.
    """
    if isinstance(error, click.Abort):
        return INTERRUPTED
    if isinstance(error, OSError) and error.errno == errno.EPIPE:
        _abandon_stdout()
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
    if as_json:
        write_json({"error": document})
    say(text)
    return code


def _as_bestiary_error(error: Exception) -> BestiaryError | None:
    """Click's complaints about the command line are usage errors like our own."""
    if isinstance(error, BestiaryError):
        return error
    if not isinstance(error, click.ClickException):
        return None
    context = getattr(error, "ctx", None)
    fix = None if context is None else f"{context.command_path} --help"
    return UsageError(error.format_message(), fix=fix)


def _abandon_stdout() -> None:
    """Nobody reads any more: what is still buffered goes nowhere, so that the interpreter's last flush is quiet."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
