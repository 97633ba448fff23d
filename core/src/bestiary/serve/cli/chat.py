"""`bestiary chat MODEL`: a conversation, line by line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from bestiary.api.errors import RequestError, UsageError

from .adapters import chosen_adapter, lora_name_option
from .conversation import Conversation, Face, JsonFace, TextFace
from .dry_run import dry_run_option, show_plan
from .options import (
    SectionedCommand,
    debug_option,
    engine_args,
    engine_options,
    model_argument,
    sampling_options,
    sampling_params,
)
from .output import say
from .ranks import follow, only_follows
from .reading import Lines, not_text, read_template
from .streaming import require_template
from .streams import NoInput

HELP = """\
/reset  forget the conversation    /exit  leave (or Ctrl-D)
/help   these lines                Ctrl-C  stop the answer"""
_TOO_LONG = ("CONTEXT_LENGTH_EXCEEDED", "KV_CACHE_EXCEEDED", "PROMPT_EXCEEDS_STEP")


@click.command(cls=SectionedCommand)
@model_argument
@click.option("--system", metavar="TEXT", help="System message.")
@click.option(
    "--chat-template",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A file with a Jinja template.",
)
@click.option("--quiet", "-q", is_flag=True, help="Neither progress, prompts nor statistics.")
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object a line to standard output: each answer.")
@lora_name_option
@dry_run_option
@debug_option
@sampling_options(leave_out=("n", "logprobs"), temperature=0.7, max_tokens=1024)
@engine_options
def chat(
    model: str,
    system: str | None,
    chat_template: Path | None,
    quiet: bool,
    as_json: bool,
    dry_run: bool,
    **options: Any,
) -> int:
    """Talk with MODEL. Each line is a message; the whole conversation is the context.

    /reset, /help and /exit are commands; Ctrl-C stops an answer, Ctrl-D leaves. Standard input that is no terminal is
    read line by line; the exit code is then 1 if a message was refused. With --json a line of output is an object with
    message, answer, finish_reason, lora_name and stats, or with error.
    """
    args = engine_args(model, options | ({"progress": False} if quiet else {}))
    if dry_run:
        return show_plan(args, sampling_params(options), as_json=as_json, on_one_line=True)
    if only_follows(args):
        follow(args)
        return 0
    if isinstance(sys.stdin, NoInput):
        raise click.UsageError("standard input is closed, and there is nobody to talk with")
    params = sampling_params(options)
    adapter = chosen_adapter(options)
    template = read_template(chat_template)
    from bestiary.serve.llm import LLM

    with LLM(**vars(args)) as llm:
        require_template(llm, template, "--chat-template FILE, or bestiary generate to continue a text")
        conversation = Conversation(llm, params, system, template, adapter)
        face: Face = JsonFace() if as_json else TextFace(quiet=quiet)
        refused = converse(conversation, face, quiet=quiet)
    return 1 if refused and not sys.stdin.isatty() else 0


def converse(conversation: Conversation, face: Face, *, quiet: bool = False) -> int:
    """Read messages and commands until there are no more; returns how many messages were refused."""
    refused, lines = 0, Lines()
    if not quiet:
        say(HELP)
    while (line := _read(lines, quiet)) is not None:
        word = line.split(maxsplit=1)[0] if line else ""
        if word == "/exit":
            break
        if word == "/reset":
            conversation.reset()
            say("the conversation is forgotten")
        elif word == "/help":
            say(HELP)
        elif line.startswith("/") and word == line:
            face.refused(UsageError(f"no such command: {line[:64]}", limit="/reset, /help, /exit", fix="/help"))
        elif line:
            refused += not _answer(conversation, line, face)
    return refused


def _answer(conversation: Conversation, line: str, face: Face) -> bool:
    try:
        answer = conversation.ask(line, face.writer())
    except RequestError as error:
        if error.error_code in _TOO_LONG:
            error.fix = "/reset forgets the conversation so far (nothing of it is ever left out silently); or say less"
        face.refused(error)
        return False
    face.answered(line, answer)
    return True


def _read(lines: Lines, quiet: bool) -> str | None:
    """The next line without its surrounding space; None at the end. Ctrl-C at the prompt starts the line anew."""
    if not sys.stdin.isatty():
        return lines.next()
    import readline  # noqa: F401 - importing it gives `input` a history and editing

    prompt = "" if quiet else "> "
    while True:
        try:
            if not sys.stdout.isatty():  # `input` would write the prompt among the answers
                print(prompt, end="", file=sys.stderr, flush=True)
                return input().strip()
            return input(prompt).strip()
        except EOFError:
            return None
        except UnicodeDecodeError as error:
            raise not_text(error) from None
        except KeyboardInterrupt:
            say("\n(Ctrl-D or /exit leaves)")
