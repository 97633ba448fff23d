"""`bestiary chat MODEL`: a conversation, line by line."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bestiary.api.errors import RequestError
from bestiary.api.sampling import SamplingParams

from .options import (
    SectionedCommand,
    debug_option,
    engine_args,
    engine_options,
    model_argument,
    sampling_options,
    sampling_params,
)
from .output import clean, say
from .streaming import TextWriter, interruptible, stats_line, stream, within_context

if TYPE_CHECKING:
    from bestiary.serve.llm import LLM

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
@debug_option
@sampling_options(temperature=0.7, max_tokens=1024)
@engine_options
def chat(model: str, system: str | None, chat_template: Path | None, quiet: bool, **options: Any) -> int:
    """Talk with MODEL. Each line is a message; the whole conversation is the context.

    /reset, /help and /exit are commands; Ctrl-C stops an answer, Ctrl-D leaves. Standard input that is no terminal is
    read line by line; the exit code is then 1 if a message was refused.
    """
    params = dataclasses.replace(sampling_params(options), n=1)
    args = engine_args(model, options | ({"progress": False} if quiet else {}))
    template = None if chat_template is None else chat_template.read_text(encoding="utf-8")
    from bestiary.serve.llm import LLM

    with LLM(**vars(args)) as llm:
        if template is None and llm.get_tokenizer().chat_template is None:
            raise RequestError(
                "this model has no chat template",
                field="chat_template",
                fix="--chat-template FILE, or bestiary generate to continue a text",
            )
        conversation = Conversation(llm, params, system, template)
        refused = converse(conversation, quiet=quiet)
    return 1 if refused and not sys.stdin.isatty() else 0


class Conversation:
    """The messages so far, and the model that answers them. A refused message leaves them as they were."""

    def __init__(
        self, llm: LLM, params: SamplingParams, system: str | None = None, template: str | None = None
    ) -> None:
        self._llm, self._params, self._template = llm, params, template
        self._opening = [] if system is None else [{"role": "system", "content": system}]
        self.messages: list[Mapping[str, str]] = list(self._opening)

    def reset(self) -> None:
        self.messages = list(self._opening)

    def ask(self, text: str, writer: TextWriter) -> str:
        """Answer `text`, writing as it comes; Ctrl-C ends the answer where it is. Returns a line about it.

        Raises:
            RequestError: the conversation does not fit, or the template refuses it.
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        ids = self._llm.chat_ids(messages, template=self._template)
        with interruptible() as interrupt:
            request = stream(self._llm, ids, within_context(self._llm, self._params, len(ids)), writer, interrupt)
        writer.end()
        self.messages = [*messages, {"role": "assistant", "content": request.outputs[0].text}]
        if interrupt.pressed:
            return "[stopped by Ctrl-C]"
        return stats_line(request)


def converse(conversation: Conversation, *, quiet: bool = False) -> int:
    """Read messages and commands until there are no more; returns how many messages were refused."""
    refused = 0
    if not quiet:
        say(HELP)
    while (line := _read(quiet)) is not None and line != "/exit":
        if line == "/reset":
            conversation.reset()
            say("the conversation is forgotten")
        elif line == "/help":
            say(HELP)
        elif line.startswith("/") and " " not in line:
            say(f"no such command: {clean(line[:64])}\n{HELP}")
        elif line:
            refused += not _answer(conversation, line, quiet)
    return refused


def _answer(conversation: Conversation, line: str, quiet: bool) -> bool:
    try:
        about = conversation.ask(line, TextWriter(sys.stdout))
    except RequestError as error:
        say(clean(str(error)))
        if error.error_code in _TOO_LONG:
            say("  fix:   /reset forgets the conversation so far; nothing of it is ever left out silently")
        return False
    if not quiet:
        say(about)
    return True


def _read(quiet: bool) -> str | None:
    """The next line without its surrounding space; None at the end. Ctrl-C at the prompt starts the line anew."""
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        return line.strip() if line else None
    import readline  # noqa: F401 - importing it gives `input` a history and editing

    while True:
        try:
            return input("" if quiet else "> ").strip()
        except EOFError:
            return None
        except KeyboardInterrupt:
            say("\n(Ctrl-D or /exit leaves)")
