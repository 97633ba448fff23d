"""`bestiary ray MODEL`: replicas of a model behind Ray Serve, until Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import click

from .options import SectionedCommand, debug_option, engine_args, engine_options, model_argument
from .output import say


@click.command(cls=SectionedCommand)
@model_argument
@click.option(
    "--replicas", type=click.IntRange(min=1), default=1, show_default=True, help="Copies of the whole engine."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at; 0.0.0.0 is every one.")
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True, help="Port to listen at.")
@debug_option
@engine_options
def ray(model: str, replicas: int, host: str, port: int, **options: Any) -> int:
    """Serve MODEL over HTTP with Ray, and print the URL when all replicas are ready.

    The ranks of every replica are placed by Ray: in the cluster at RAY_ADDRESS, otherwise in one that is started on
    this machine and ends with the command. POST /v1/completions takes {"prompt": …} and sampling parameters; GET
    /health answers while the engine lives. Ctrl-C and SIGTERM end it.
    """
    if options["distributed_executor_backend"] == "external_launcher":
        raise click.UsageError("Ray starts the processes; --distributed-executor-backend is ray here")
    args = engine_args(model, options | {"distributed_executor_backend": "ray"})
    _check(args)
    from bestiary.serve.ray_serve import serving

    with serving(args, replicas=replicas, host=host, port=port) as url, ending_signals() as ended:
        print(url, flush=True)
        say(f"serving {model}: {replicas} replica{'s' * (replicas > 1)}; Ctrl-C ends it")
        ended.wait()
        say("ending")
    return 0


def _check(args: Any) -> None:
    """A bad model or argument is an error here and now, before anything is started."""
    from bestiary.engine.build import EngineBuilder

    builder = EngineBuilder(args)
    builder.registry.find(builder.description.architectures, args.plugin, guarded=True)


@contextmanager
def ending_signals() -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets; a second one is `KeyboardInterrupt`."""
    event = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
