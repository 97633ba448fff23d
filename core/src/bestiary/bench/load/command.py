"""`bestiary bench serve URL`: the options of a load, and what is made of it."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bestiary.api.errors import EngineError
from bestiary.bench.common import finish, lengths
from bestiary.serve.cli.kinds import JSON_OBJECT, PAIR
from bestiary.serve.cli.options import debug_option
from bestiary.serve.cli.output import say

from .arrivals import Arrivals, Closed, Open
from .figures import LIMITS

if TYPE_CHECKING:
    from .load import Run
    from .work import Work

_DEFAULT_CONCURRENCY = 8


@click.command()
@click.argument("url")
@click.option("--model", help="Which of the server's models.  [default: the first]")
@click.option("--api-key", metavar="KEY", help="The server's key.")
@click.option("--endpoint", type=click.Choice(["chat", "completions"]), default="chat", show_default=True)
@click.option("--concurrency", type=click.IntRange(1), help="Requests at any time (closed loop).  [default: 8]")
@click.option(
    "--rate",
    type=click.FloatRange(0, min_open=True),
    help="Requests a second, as users send them: a Poisson process (open loop), not --concurrency.",
)
@click.option("--num-prompts", type=click.IntRange(1), default=100, show_default=True, help="Requests in all.")
@click.option("--input-len", default="64:256", show_default=True, metavar="N or N:M",
              help="Words of a prompt, or its tokens with --vocab-size.")  # fmt: skip
@click.option("--output-len", type=click.IntRange(1), default=64, show_default=True, help="Tokens of an answer.")
@click.option("--vocab-size", type=click.IntRange(1), help="Send token ids below it; completions only.")
@click.option("--ignore-eos/--no-ignore-eos", default=True, show_default=True, help="Answers are always as long.")
@click.option("--temperature", type=click.FloatRange(0), default=0.0, show_default=True)
@click.option("--extra-body", type=JSON_OBJECT, metavar="JSON", default={}, help="Further fields of every request.")
@click.option("--slo", "limits", type=PAIR, multiple=True, metavar="NAME=MS",
              help="A limit of goodput, in milliseconds: ttft, tpot, itl or e2e; repeatable.")  # fmt: skip
@click.option("--warmup", type=click.IntRange(0), default=1, show_default=True, help="Requests before, not measured.")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), default=600.0, show_default=True,
              help="Seconds after which a request has failed.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="Of prompts and of arrivals.")
@click.option("--plot", is_flag=True, help="Draw it in the terminal, too.")
@click.option("--png", type=click.Path(dir_okay=False, path_type=Path), help="Draw it to this file (extra: plots).")
@click.option("--json", "as_json", is_flag=True, help="Print the record instead of a table.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Write the record there.")
@click.option("--quiet", "-q", is_flag=True, help="No progress.")
@debug_option
def serve(url: str, **options: Any) -> int:
    """Load the OpenAI-compatible server at URL, and tell what its users would see.

    Closed loop (--concurrency): the next request starts when one ends. Open loop (--rate): requests start when they
    are due, however slow the server is, and waiting counts. The exit code is 1 if no request was answered.
    """
    from bestiary.bench.record import load_average, new_record
    from bestiary.serve.cli.chat.server import Server

    from .figures import figures
    from .load import Load
    from .work import Work

    limits = _limits(options["limits"])
    arrivals = _arrivals(options)
    if options["vocab_size"] is not None and options["endpoint"] != "completions":
        raise click.UsageError("--vocab-size sends token ids, which only --endpoint completions takes")
    if options["png"] is not None:
        from .png import require_matplotlib

        require_matplotlib()
    server = Server.at(url, options["api_key"])
    listed = server.models()
    model = options["model"] or str(listed[0]["id"] if listed else "")
    shortest, longest = lengths(options["input_len"])
    work = Work(
        model=model, requests=options["num_prompts"], shortest=shortest, longest=longest, extra=options["extra_body"],
        **{name: options[name] for name in
           ("endpoint", "output_len", "seed", "vocab_size", "ignore_eos", "temperature")},
    )  # fmt: skip
    start = load_average()

    async def measured() -> Run:
        async with Load(server, work, timeout=options["timeout"]) as load:
            warm = await load.warm_up(options["warmup"])
            if warm and all(each.error is not None for each in warm):
                raise EngineError(f"the server answers none of the first requests: {warm[-1].error}", field="warmup")
            if options["quiet"]:
                return await load.run(arrivals)
            with _Progress(work.requests) as progress:
                return await load.run(arrivals, progress)

    run = asyncio.run(measured())
    found = figures(run, limits)
    record = new_record(
        "serve", model, server=_facts(server.facts()), load_average={"start": start, "end": load_average()},
        workload=_workload(work, arrivals), limits={f"{name}_ms": value for name, value in limits.items()},
        results={"server": asdict(found)},
    )  # fmt: skip
    finish(options, record)
    _draw(run, options, model)
    return 0 if found.completed else 1


def _limits(given: tuple[tuple[str, str], ...]) -> dict[str, float]:
    found = {}
    for name, text in given:
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if name not in LIMITS or not 0 < value < float("inf"):
            rule = f"{', '.join(LIMITS)}, and milliseconds"
            raise click.BadParameter(f"{name}={text} is no limit: {rule}", param_hint="--slo")
        found[name] = value
    return found


def _arrivals(options: Mapping[str, Any]) -> Arrivals:
    if options["rate"] is None:
        return Closed(options["concurrency"] or _DEFAULT_CONCURRENCY)
    if options["concurrency"] is not None:
        raise click.UsageError("--rate and --concurrency exclude each other: an open loop waits for nobody")
    return Open(options["rate"], options["seed"])


def _facts(info: Mapping[str, Any]) -> dict[str, Any]:
    """What a server of ours says of itself that a reader of the record wants; empty for another server."""
    names = ("architecture", "dtype", "quantization", "max_model_len", "max_num_seqs", "device", "attention_backend")
    return {name: info[name] for name in names if name in info}


def _workload(work: Work, arrivals: Arrivals) -> dict[str, Any]:
    kind = "closed" if isinstance(arrivals, Closed) else "open"
    return {**asdict(work), "arrivals": {"loop": kind, **asdict(arrivals)}}


def _draw(run: Run, options: Mapping[str, Any], model: str) -> None:
    if options["plot"]:
        from .chart import charts

        lines = charts(run, shutil.get_terminal_size().columns)
        (say if options["as_json"] else print)("\n".join(["", *lines]))
    if options["png"] is not None:
        from .png import write_png

        write_png(run, options["png"], model)
        say(f"drawn to {options['png']}")


class _Progress:
    """A line on a terminal that says how far the run is; elsewhere only its beginning."""

    def __init__(self, requests: int) -> None:
        self._requests = requests
        self._terminal = sys.stderr.isatty()

    def __enter__(self) -> _Progress:
        say(f"sending {self._requests} requests")
        return self

    def __exit__(self, *exception: object) -> None:
        self._write("\r\x1b[K")

    def __call__(self, run: Run) -> None:
        done = len(run.samples) - run.running
        failed = sum(each.error is not None for each in run.samples)
        pieces = sum(len(each.pieces) for each in run.samples)
        self._write(
            f"\r\x1b[K{done}/{self._requests} done, {run.running} under way, {failed} failed, {pieces} pieces of text"
        )

    def _write(self, text: str) -> None:
        if self._terminal:
            print(text, end="", file=sys.stderr, flush=True)
