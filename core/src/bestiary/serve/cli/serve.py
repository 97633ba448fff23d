"""`bestiary serve MODEL`: an OpenAI-compatible server, and the page at `/`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bestiary.api.errors import UsageError

from .dry_run import dry_run_option, show_plan
from .failures import INTERRUPTED
from .kinds import MEMORY
from .options import Option, SectionedCommand, debug_option, engine_args, engine_options_with, model_argument
from .reading import read_template

if TYPE_CHECKING:
    from bestiary.engine.arguments import EngineArgs
    from bestiary.engine.process.handle import Spawned
    from bestiary.serve.openai.options import ServeOptions

MAX_QUEUE = 256
_SAMPLING = {
    "temperature": click.FLOAT, "top_p": click.FLOAT, "top_k": click.INT, "min_p": click.FLOAT,
    "repetition_penalty": click.FLOAT,
}  # fmt: skip
_EXTRA = 'pip install "bestiary[serve]"'


class AccessOption(Option):
    section = "Access options"


class DefaultOption(Option):
    section = "Sampling defaults"


class ServerOption(Option):
    section = "Server options"


def _options(command: Any) -> Any:
    """The options that are the server's own, in the order in which they are shown."""
    seconds = click.FloatRange(min=0)
    found = [
        click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at; 0.0.0.0: all."),
        click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: a free one."),
        click.option("--uds", type=click.Path(path_type=Path), metavar="PATH", help="A Unix socket, not a port."),
        click.option("--served-model-name", "names", multiple=True, metavar="NAME",
                     help="Id of the model, in place of its own; repeatable: the others are aliases."),
        click.option("--open", "open_page", is_flag=True, help="Open the page in a browser."),
        click.option("--api-key", "api_keys", multiple=True, metavar="KEY", cls=AccessOption,
                     help="A key that opens the server; repeatable. Better in BESTIARY_API_KEY or a file."),
        click.option("--api-key-file", type=click.Path(exists=True, dir_okay=False, path_type=Path), cls=AccessOption,
                     help="A file with a key in each line."),
        click.option("--allowed-host", "allowed_hosts", multiple=True, metavar="NAME", cls=AccessOption,
                     help='A further name in the header Host; repeatable; "*": any.'),
        click.option("--cors-origin", "cors_origins", multiple=True, metavar="ORIGIN", cls=AccessOption,
                     help='Web pages of this origin may call; repeatable; "*": any.'),
        click.option("--metrics/--no-metrics", default=True, show_default=True, cls=AccessOption, help="GET /metrics."),
        click.option("--metrics-without-key", is_flag=True, cls=AccessOption, help="It needs no key."),
        click.option("--web/--no-web", default=True, show_default=True, cls=AccessOption, help="The page at /."),
        click.option("--enable-runtime-lora", is_flag=True, cls=AccessOption,
                     help="Adapters may be loaded over HTTP, from below --lora-dir."),
        click.option("--lora-dir", type=click.Path(exists=True, file_okay=False, path_type=Path), cls=AccessOption),
        click.option("--chat-template", type=click.Path(exists=True, dir_okay=False, path_type=Path), cls=ServerOption,
                     help="A file with a Jinja template, in place of the model's."),
        click.option("--allow-request-template", is_flag=True, cls=AccessOption,
                     help="Requests may bring a chat template."),
        click.option("--tool-call-parser", default="auto", show_default=True, metavar="NAME", cls=ServerOption,
                     help="How tool calls are written; auto: as the chat template does."),
        click.option("--reasoning-parser", default="auto", show_default=True, metavar="NAME", cls=ServerOption,
                     help="How reasoning is marked; auto: as the chat template does."),
        *(
            click.option(f"--{name.replace('_', '-')}", type=kind, cls=DefaultOption, help="Where a request has none.")
            for name, kind in _SAMPLING.items()
        ),
        click.option("--strict-fields", is_flag=True, cls=ServerOption,
                     help="A field that nobody knows is an error, and no warning."),
        click.option("--max-body", type=MEMORY, default="8M", show_default=True, cls=ServerOption,
                     help="Most bytes of a request."),
        click.option("--drain", type=seconds, default=30.0, show_default=True, cls=ServerOption,
                     help="Seconds for answers to end after the first SIGTERM or Ctrl-C."),
        click.option("--write-timeout", type=click.FloatRange(min=0, min_open=True), default=30.0, show_default=True,
                     cls=ServerOption, help="Seconds a client may leave a stream unread."),
        click.option("--unready-after", type=click.FloatRange(min=0, min_open=True), default=30.0, show_default=True,
                     cls=ServerOption, help="Seconds without a step until /health/ready says stalled."),
        click.option("--restart", type=click.Choice(["on-failure", "never"]), default="on-failure", show_default=True,
                     cls=ServerOption, help="Whether an engine process that ended is started again."),
        click.option("--log-requests", is_flag=True, cls=ServerOption, help="A log line for every request."),
        click.option("--log-json", is_flag=True, cls=ServerOption, help="The log as one JSON object a line."),
    ]  # fmt: skip
    for option in reversed(found):
        command = option(command)
    return command


@click.command(cls=SectionedCommand)
@model_argument
@_options
@dry_run_option
@click.option("--json", "as_json", is_flag=True, help="With --dry-run: the plan as JSON.")
@debug_option
@engine_options_with(max_queue=MAX_QUEUE, capture_sizes="at_start")
def serve(model: str, dry_run: bool, as_json: bool, **options: Any) -> int:
    """Serve MODEL over HTTP, as OpenAI's clients expect it, with a page to chat at /.

    The server listens at once and says 503 until the model is loaded. It ends after SIGTERM or Ctrl-C: no new requests,
    --drain seconds for those there are; a second signal ends it at once.
    """
    args = engine_args(model, options | ({"progress": False} if options["log_json"] else {}))
    if options["enable_runtime_lora"]:
        args = replace(args, enable_lora=True)
    served = _served(options)
    if dry_run:
        return show_plan(args, as_json=as_json, more={"server": _plan(served, options)})
    if as_json:
        raise click.UsageError("--json needs --dry-run; --log-json writes the log as JSON")
    from bestiary.engine.process.handle import spawned

    with spawned() as process:  # it imports torch while this one imports the rest
        return _run(args, served, options, process)


def _run(args: EngineArgs, served: ServeOptions, options: Mapping[str, Any], process: Spawned) -> int:
    try:
        from bestiary.serve.openai.listening import listening
        from bestiary.serve.openai.running import Running
    except ImportError as error:
        raise UsageError(f"serving needs {error.name}", field="serve", fix=_EXTRA) from error
    from .serve_screen import JsonScreen, TextScreen, set_up_logging

    with listening(options["host"], options["port"], options["uds"]) as bound:
        set_up_logging(as_json=options["log_json"], requests=options["log_requests"])
        kind = JsonScreen if options["log_json"] else TextScreen
        screen = kind(args.model, bound, open_page=options["open_page"], keys=bool(served.api_keys))
        settings = {name: options[name] for name in ("drain", "restart", "unready_after")}

        async def run() -> int:
            return await Running(args, served, screen, spawned=process, **settings).run(bound)

        code = asyncio.run(run())
    if code == INTERRUPTED:
        os._exit(code)  # a thread may still read the model's files, and would be waited for
    return code


def _served(options: Mapping[str, Any]) -> ServeOptions:
    """What the HTTP layer is told. Raises where options do not go together."""
    from bestiary.serve.openai.options import ServeOptions

    if options["enable_runtime_lora"] and options["lora_dir"] is None:
        raise click.UsageError("--enable-runtime-lora needs --lora-dir: adapters are loaded from below it only")
    if options["lora_dir"] is not None and not options["enable_runtime_lora"]:
        raise click.UsageError("--lora-dir does nothing without --enable-runtime-lora")
    taken = (
        "host", "port", "allowed_hosts", "cors_origins", "max_body", "strict_fields", "write_timeout",
        "allow_request_template", "tool_call_parser", "reasoning_parser", "metrics", "metrics_without_key", "web",
        "log_requests", "lora_dir",
    )  # fmt: skip
    return ServeOptions(
        **{name: options[name] for name in taken},
        api_keys=(*options["api_keys"], *_keys_of(options["api_key_file"])),
        served_model_names=options["names"],
        chat_template=read_template(options["chat_template"]),
        sampling={name: options[name] for name in _SAMPLING if options[name] is not None},
    )


def _plan(served: ServeOptions, options: Mapping[str, Any]) -> dict[str, Any]:
    """Where it would listen, and who could call."""
    return {
        "listens at": options["uds"] or f"{served.host}:{served.port}",
        "API keys": len(served.api_keys) or "none: everybody who reaches it may call",
        "further hosts": ", ".join(served.allowed_hosts) or None,
        "web pages of": ", ".join(served.cors_origins) or None,
        "page at /": served.web,
        "metrics": served.metrics,
        "adapters from": None if served.lora_dir is None else str(served.lora_dir),
        "drain": f"{options['drain']:g} s",
        "restart": options["restart"],
    }


def _keys_of(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        keys = path.read_text(encoding="ascii").split()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError("the keys cannot be read", field="--api-key-file", value=str(path)) from error
    if not keys:
        raise UsageError("there is no key in the file", field="--api-key-file", value=str(path))
    return keys
