"""The commands of `bestiary bench`: progress on stderr, figures on stdout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from bestiary.serve.cli.groups import Group
from bestiary.serve.cli.options import debug_option

from .common import finish, lengths
from .load.command import serve

Command = TypeVar("Command", bound=Callable[..., Any])

FILE = click.Path(dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)
_ENGINE = (
    "dtype", "device", "max_model_len", "load_format", "attention_backend", "quantization", "kv_cache_dtype",
)  # fmt: skip


def _shared(command: Command) -> Command:
    """The options that all commands take."""
    for option in reversed(
        [
            click.argument("model"),
            click.option("--dtype", help="Number format of the model: auto, float32, bfloat16, float16."),
            click.option("--device", help="auto, cpu or cuda."),
            click.option("--max-model-len", type=click.IntRange(1), help="Prompt and answer together, in tokens."),
            click.option("--load-format", help="auto, safetensors, gguf or dummy (random weights)."),
            click.option("--attention-backend", help="Instead of the best one."),
            click.option("--quantization", help="Keep or quantize weights by this method."),
            click.option("--kv-cache-dtype", help="Number format of the KV cache."),
            click.option("--threads", type=click.IntRange(1), help="CPU threads of torch."),
            click.option("--json", "as_json", is_flag=True, help="Print the record instead of a table."),
            click.option("--output", type=FILE, help="Write the record there."),
            click.option("--quiet", "-q", is_flag=True, help="No progress."),
            debug_option,
        ]
    ):
        command = option(command)
    return command


def _of_speed(command: Command) -> Command:
    """The options of those that measure speed."""
    for option in reversed(
        [
            click.option("--seed", type=int, default=0, show_default=True, help="Of the prompts' random tokens."),
            click.option("--compare", type=click.Choice(["transformers"]), help="Measure it too, in turn."),
        ]
    ):
        command = option(command)
    return command


@click.group(cls=Group)
def bench() -> None:
    """Measure speed, beside what the machine allows at most, servers, and what number formats cost in quality."""


@bench.command()
@_shared
@_of_speed
@click.option("--prefill-len", type=click.IntRange(1), default=512, show_default=True, help="Prompt to first token.")
@click.option("--input-len", type=click.IntRange(1), default=32, show_default=True, help="Prompt before decoding.")
@click.option("--output-len", type=click.IntRange(2), default=128, show_default=True, help="Tokens decoded.")
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True, help="Rounds; medians are told.")
def latency(prefill_len: int, input_len: int, output_len: int, repeats: int, **shared: Any) -> None:
    """One request at a time: prompt speed, time to the first token, decoding speed."""
    from .latency import LatencyWork
    from .run import run_latency

    finish(
        shared, run_latency(_options(shared), LatencyWork(prefill_len, input_len, output_len, repeats), _say(shared))
    )


@bench.command()
@_shared
@_of_speed
@click.option("--num-prompts", "--concurrency", type=click.IntRange(1), default=16, show_default=True,
              help="Requests submitted together.")  # fmt: skip
@click.option("--input-len", default="64:256", show_default=True, help="Prompt tokens: a number, or SHORTEST:LONGEST.")
@click.option("--output-len", type=click.IntRange(1), default=64, show_default=True, help="New tokens a request.")
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True, help="Rounds; medians are told.")
def throughput(num_prompts: int, input_len: str, output_len: int, repeats: int, **shared: Any) -> None:
    """Many requests at once: tokens a second over all of them, and what each of them sees."""
    from .run import run_throughput
    from .throughput import ThroughputWork

    work = ThroughputWork(num_prompts, *lengths(input_len), output_len, repeats)
    finish(shared, run_throughput(_options(shared), work, _say(shared)))


@bench.command()
@_shared
@click.option("--batch", type=click.IntRange(1), multiple=True, default=(1, 16, 32), show_default=True,
              help="Rows of a decode step; repeatable.")  # fmt: skip
@click.option("--prefill-len", type=click.IntRange(1), default=512, show_default=True, help="Prompt to first token.")
@click.option("--input-len", type=click.IntRange(1), default=128, show_default=True, help="Prompts before decoding.")
@click.option("--output-len", type=click.IntRange(3), default=16, show_default=True, help="Tokens decoded.")
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True, help="Rounds; medians are told.")
@click.option("--seconds", type=click.FloatRange(0), default=1.0, show_default=True, help="To take a step apart in.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the prompts' random tokens.")
@click.option("--skip-tokenizer-init", is_flag=True, help="Token ids alone: no text is made.")
@click.option("--enforce-eager", is_flag=True, help="Decode steps op by op, instead of recorded.")
def ops(
    batch: tuple[int, ...], prefill_len: int, input_len: int, output_len: int, repeats: int, seconds: float,
    skip_tokenizer_init: bool, enforce_eager: bool, **shared: Any,
) -> None:  # fmt: skip
    """Where the time of a decode step and of a prompt goes: op by op, each beside its own limit."""
    from .ops import OpsWork
    from .run import run_ops

    work = OpsWork(batch, input_len, output_len, prefill_len, repeats, seconds, not skip_tokenizer_init)
    engine = {"skip_tokenizer_init": skip_tokenizer_init, "enforce_eager": enforce_eager}
    finish(shared, run_ops(_options(shared, engine), work, _say(shared)))


@bench.command()
@_shared
@click.option("--text", type=FILE, help="A file to predict, instead of ours.")
@click.option("--window", type=click.IntRange(2), help="Tokens at once.  [default: 1024, or the context]")
@click.option("--stride", type=click.IntRange(1), help="Tokens from window to window.  [default: half of one]")
@click.option("--method", "methods", multiple=True, metavar="METHOD",
              help="Measure this too: a quantization method, kv=DTYPE, or both (int8+kv=fp8); repeatable.")  # fmt: skip
def perplexity(
    text: Path | None, window: int | None, stride: int | None, methods: tuple[str, ...], **shared: Any
) -> None:
    """How well a text is predicted, by the model as it is and under each METHOD."""
    from .perplexity import TEXT, PerplexityWork
    from .run import run_perplexity

    work = PerplexityWork(text=text or TEXT, window=window, stride=stride)
    finish(shared, run_perplexity(_options(shared), work, methods, _say(shared)))


@bench.command()
@_shared
@click.option("--streams", type=click.IntRange(1), default=32, show_default=True, help="Answers at once.")
@click.option("--input-len", type=click.IntRange(1), default=16, show_default=True, help="Tokens of a prompt.")
@click.option("--output-len", type=click.IntRange(1), default=64, show_default=True, help="New tokens an answer.")
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True, help="Rounds; medians are told.")
@click.option("--skip-tokenizer-init", is_flag=True, help="Token ids alone, both ways: no text is made.")
def http(streams: int, input_len: int, output_len: int, repeats: int, skip_tokenizer_init: bool, **shared: Any) -> None:
    """What a server costs: the same work offline and over HTTP, in turn."""
    from .http_cost import HttpWork, run_http

    engine = {name: shared[name] for name in _ENGINE if name != "max_model_len"}
    work = HttpWork(streams, input_len, output_len, repeats)
    finish(shared, run_http(shared["model"], engine, work, _say(shared)))


@bench.command()
@_shared
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True, help="Starts; medians are told.")
def start(repeats: int, **shared: Any) -> None:
    """How long `bestiary serve` takes from the command to the first token, and for what."""
    from .start import StartWork, run_start

    engine = {name: shared[name] for name in _ENGINE}
    finish(shared, run_start(shared["model"], engine, StartWork(repeats), _say(shared)))


@bench.command()
@_shared
@click.option("--llama-bin", type=FOLDER, help="llama.cpp takes part: the folder of llama-bench and llama-server.")
@click.option("--llama-model", type=FILE, help="Its GGUF file.  [default: MODEL]")
@click.option("--transformers", metavar="DIRECTORY", help="transformers takes part, with the model in this folder.")
@click.option("--transformers-dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32",
              show_default=True)  # fmt: skip
@click.option("--openvino", metavar="DIRECTORY", help="OpenVINO GenAI takes part, with the IR in this folder.")
@click.option("--openvino-python", metavar="FILE", help="A Python that has openvino-genai.  [default: this one]")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Medians are told.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the prompts' random tokens.")
@click.option("--prefill-len", type=click.IntRange(1), default=512, show_default=True, help="Prompt to first token.")
@click.option("--input-len", type=click.IntRange(1), default=32, show_default=True, help="Prompt before decoding.")
@click.option("--output-len", type=click.IntRange(2), default=128, show_default=True, help="Tokens decoded.")
@click.option("--num-prompts", type=click.IntRange(0), multiple=True, default=(16, 32), show_default=True,
              help="Requests submitted together; repeatable, 0: none.")  # fmt: skip
@click.option("--batch-input-len", default="64:256", show_default=True, help="Their prompts: N, or SHORTEST:LONGEST.")
@click.option("--batch-output-len", type=click.IntRange(1), default=64, show_default=True, help="Their new tokens.")
def peers(**shared: Any) -> None:
    """Bestiary beside llama.cpp, transformers and OpenVINO on a CPU: the same work in turn, each in its own process."""
    from .peers.options import named_peers, peers_work
    from .peers.run import run_peers

    engine = {name: shared[name] for name in _ENGINE}
    finish(shared, run_peers(shared["model"], engine, named_peers(shared), peers_work(shared), _say(shared)))


@bench.command()
@click.option("--device", default="cuda", show_default=True, help="cuda, or cpu to try the command.")
@click.option("--only", multiple=True, metavar="ROW", help="G1 … G9, T1 … T4; repeatable.  [default: all]")
@click.option("--budget", type=click.FloatRange(1), default=420.0, show_default=True,
              help="Seconds after which no further row is begun.")  # fmt: skip
@click.option("--tiny", is_flag=True, help="Shapes of a few kilobytes, to try the command.")
@click.option("--json", "as_json", is_flag=True, help="Print the record instead of a table.")
@click.option("--output", type=FILE, help="Write the record there.")
@click.option("--quiet", "-q", is_flag=True, help="No progress.")
@debug_option
def gpu(device: str, only: tuple[str, ...], budget: float, tiny: bool, **shared: Any) -> None:
    """A GPU's figures without any model files: random weights of published shapes, each beside its limit."""
    from .gpu.run import run_gpu

    finish(shared, run_gpu(device, only, budget, tiny, _say(shared)))


def _options(shared: dict[str, Any], more: Mapping[str, Any] | None = None) -> Any:
    from .run import BenchOptions

    engine = {**{name: shared[name] for name in _ENGINE}, **(more or {}), "progress": not shared["quiet"]}
    return BenchOptions(
        model=shared["model"],
        engine=engine,
        threads=shared["threads"],
        seed=shared.get("seed", 0),
        compare=shared.get("compare"),
    )


def _say(shared: dict[str, Any]) -> Callable[[str], None]:
    return (lambda text: None) if shared["quiet"] else (lambda text: click.echo(text, err=True))


bench.add_command(serve)
