"""`bestiary embed MODEL [TEXT]...`: a vector of each text, one line each on standard output."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import click

from bestiary.api.errors import EngineError, RequestError
from bestiary.api.outputs import PoolingRequestOutput
from bestiary.api.pooling import PoolingParams

from .adapters import chosen_adapter, lora_name_option
from .options import SectionedCommand, debug_option, engine_args, engine_options, model_argument
from .output import say, write_json_line
from .ranks import follow, only_follows
from .reading import Lines, refuse_undecoded


@click.command(cls=SectionedCommand)
@model_argument
@click.argument("texts", metavar="[TEXT]...", nargs=-1)
@click.option("--dimensions", type=click.IntRange(min=1), help="Keep only the first so many numbers.")
@click.option("--normalize/--no-normalize", default=True, show_default=True, help="Make the length of vectors 1.")
@click.option("--quiet", "-q", is_flag=True, help="Neither progress nor statistics.")
@lora_name_option
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object a line, with the text and its tokens.")
@debug_option
@engine_options
def embed(
    model: str,
    texts: tuple[str, ...],
    dimensions: int | None,
    normalize: bool,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Make a vector of each TEXT with MODEL, and write its numbers to standard output, a line each.

    Without TEXT each line of standard input is one. --pooling-type says which hidden states count.
    """
    args = engine_args(model, options | {"runner": "pooling"} | ({"progress": False} if quiet else {}))
    if only_follows(args):
        follow(args)
        return
    params = PoolingParams(task="embed", normalize=normalize, dimensions=dimensions)
    given, adapter = _texts(texts), chosen_adapter(options)
    from bestiary.serve.llm import LLM

    with LLM(**vars(args)) as llm:
        outputs = llm.embed(list(given), params, use_tqdm=not quiet, lora_request=adapter)
    for index, output in enumerate(outputs):
        _write(index, output, as_json)
    if not quiet:
        tokens = sum(len(output.prompt_token_ids) for output in outputs)
        say(f"{len(outputs)} texts, {tokens} tokens, vectors of {outputs[0].outputs.hidden_size} numbers")
    failed = [index for index, output in enumerate(outputs) if output.outputs.finish_reason == "error"]
    if failed:
        raise EngineError(
            f"{len(failed)} of {len(outputs)} texts have no vector: {outputs[failed[0]].outputs.stop_reason}",
            details=[f"text {index}" for index in failed],
        )


def _texts(arguments: Sequence[str]) -> Sequence[str]:
    if arguments:
        for text in arguments:
            refuse_undecoded(text, "TEXT")
    elif sys.stdin.isatty():
        raise click.UsageError("Missing TEXT: give it as an argument, or lines of it on standard input")
    found = arguments or tuple(_lines())
    if not found or not all(found):
        raise RequestError(
            "a text is empty", code="EMPTY_PROMPT", field="TEXT", limit="at least 1 character each, and one text",
            fix='bestiary embed MODEL "text", or texts on standard input, a line each',
        )  # fmt: skip
    return found


def _lines() -> Iterator[str]:
    lines = Lines()
    while (line := lines.next()) is not None:
        yield line


def _write(index: int, output: PoolingRequestOutput[Any], as_json: bool) -> None:
    numbers = output.outputs.data
    if as_json:
        shown = {"index": index, "text": output.prompt, "tokens": len(output.prompt_token_ids), "embedding": numbers}
        write_json_line(shown | {"finish_reason": output.outputs.finish_reason})
    else:
        print(*(f"{number:.7g}" for number in numbers))
