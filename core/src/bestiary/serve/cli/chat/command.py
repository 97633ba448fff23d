"""`bestiary chat [MODEL]`: the options of a conversation, and who answers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from bestiary.engine.arguments import EngineArgs
from bestiary.serve.cli.adapters import chosen_adapter, lora_name_option
from bestiary.serve.cli.dry_run import dry_run_option, show_plan
from bestiary.serve.cli.options import (
    EngineOption,
    SectionedCommand,
    debug_option,
    engine_args,
    engine_options,
    optional_model_argument,
    sampling_options,
    sampling_params,
)
from bestiary.serve.cli.ranks import follow, only_follows
from bestiary.serve.cli.reading import read_template, refuse_undecoded
from bestiary.serve.cli.streaming import require_template
from bestiary.serve.cli.streams import NoInput

from .commands import Chat, complete
from .conversation import Conversation, Responder
from .faces import Face, JsonFace, TextFace
from .loop import Messages, converse, greet
from .prompt import PipedMessages, TypedMessages
from .sampling import SamplingChoice


@click.command(cls=SectionedCommand)
@optional_model_argument
@click.option("--url", metavar="URL", help="Talk with the OpenAI-compatible server there; no model is loaded.")
@click.option("--api-key", metavar="KEY", help="The server's key, with --url.")
@click.option("--system", metavar="TEXT", help="System message.")
@click.option(
    "--chat-template",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A file with a Jinja template.",
)
@click.option("--plain", is_flag=True, help="Text as it comes, also on a terminal: no Markdown.")
@click.option("--history/--no-history", default=True, help="Keep what is typed for other sessions.  [default: keep]")
@click.option("--quiet", "-q", is_flag=True, help="Neither progress, prompts nor statistics.")
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object a line to standard output: each answer.")
@lora_name_option
@dry_run_option
@debug_option
@sampling_options(leave_out=("n", "logprobs"), temperature=0.7, max_tokens=1024)
@engine_options
def chat(model: str | None, dry_run: bool, **options: Any) -> int:
    """Talk with MODEL, or with a server (--url). The whole conversation is the context.

    /help lists the commands; Ctrl-C stops an answer, Ctrl-D leaves. Standard input that is no terminal is read line by
    line; the exit code is then 1 if a message was refused. With --json a line of output is an object with message,
    answer, finish_reason, lora_name and stats, or with error.
    """
    ctx = click.get_current_context()
    params = sampling_params(options)
    args = _engine(ctx, model, options, dry_run=dry_run)
    if args is not None and dry_run:
        return show_plan(args, params, as_json=options["as_json"], on_one_line=True)
    if args is not None and only_follows(args):
        follow(args)
        return 0
    if isinstance(sys.stdin, NoInput):
        raise click.UsageError("standard input is closed, and there is nobody to talk with")
    if options["system"] is not None:
        refuse_undecoded(options["system"], "system")
    choice = SamplingChoice.of_command(ctx, params)
    with _served(model, options) if args is None else _loaded(args, options) as responder:
        conversation = Conversation(responder, choice, options["system"])
        face: Face = JsonFace() if options["as_json"] else TextFace(quiet=options["quiet"], plain=options["plain"])
        if not options["quiet"]:
            greet(responder.name)
        refused = converse(Chat(conversation, face), _messages(options))
    return 1 if refused and not sys.stdin.isatty() else 0


def _engine(ctx: click.Context, model: str | None, options: dict[str, Any], *, dry_run: bool) -> EngineArgs | None:
    """The engine to load; None where a server answers. Raises where options do not go together."""
    if options["url"] is not None:
        _refuse_beside_url(ctx, dry_run)
        return None
    if model is None:
        raise click.UsageError("Missing MODEL: name one, or a server with --url")
    if _on_command_line(ctx, "api_key"):
        raise click.UsageError("--api-key needs --url")
    return engine_args(model, options | ({"progress": False} if options["quiet"] else {}))


@contextmanager
def _served(model: str | None, options: dict[str, Any]) -> Iterator[Responder]:
    from .served import ServerResponder
    from .server import Server

    yield ServerResponder(Server.at(options["url"], options["api_key"]), model)


@contextmanager
def _loaded(args: EngineArgs, options: dict[str, Any]) -> Iterator[Responder]:
    adapter = chosen_adapter(options)
    template = read_template(options["chat_template"])
    from bestiary.serve.llm import LLM

    from .local import LocalResponder

    with LLM(**vars(args)) as llm:
        require_template(llm, template, "--chat-template FILE, or bestiary generate to continue a text")
        yield LocalResponder(llm, template, adapter)


def _messages(options: dict[str, Any]) -> Messages:
    if not sys.stdin.isatty():
        return PipedMessages()
    return TypedMessages(complete, keep=options["history"], prompt=not options["quiet"])


def _refuse_beside_url(ctx: click.Context, dry_run: bool) -> None:
    """The engine is the server's, and so are its options."""
    if dry_run:
        raise click.UsageError("--dry-run is about a model that is loaded here, and --url loads none")
    of_engine = [each for each in ctx.command.params if isinstance(each, EngineOption) and each.name != "seed"]
    useless = [each.opts[0] for each in of_engine if _on_command_line(ctx, str(each.name))]
    useless += [f"--{name.replace('_', '-')}" for name in ("chat_template", "lora_name") if _on_command_line(ctx, name)]
    if useless:
        raise click.UsageError(f"{', '.join(useless)}: with --url the engine is the server's")


def _on_command_line(ctx: click.Context, name: str) -> bool:
    return ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
