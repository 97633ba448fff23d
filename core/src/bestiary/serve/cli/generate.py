"""`bestiary generate MODEL [PROMPT]`: one prompt, its answer on standard output as it comes."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bestiary.api.errors import EngineError, RequestError
from bestiary.api.outputs import RequestOutput
from bestiary.api.sampling import SamplingParams

from .adapters import chosen_adapter, lora_name_option
from .dry_run import dry_run_option, show_plan
from .forms import chosen_form, form_options
from .options import (
    SectionedCommand,
    debug_option,
    engine_args,
    engine_options,
    json_option,
    model_argument,
    sampling_options,
    sampling_params,
)
from .output import say, write_json
from .ranks import follow, only_follows
from .reading import read_all, read_template, refuse_undecoded
from .streaming import TextWriter, ended_by, is_given, require_template, stats, stats_line, stream, within_context

if TYPE_CHECKING:
    from bestiary.serve.llm import LLM

MAX_TOKENS = 256


@click.command(cls=SectionedCommand)
@model_argument
@click.argument("prompt", required=False)
@click.option("--prompt", "-p", "prompt_option", metavar="TEXT", help="The prompt, in place of PROMPT.")
@click.option(
    "--chat/--raw",
    default=None,
    help="Ask through the model's chat template, or continue the text as it stands.  [default: raw]",
)
@click.option("--system", metavar="TEXT", help="System message, with --chat.")
@click.option(
    "--chat-template", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="A file, with --chat."
)
@click.option("--quiet", "-q", is_flag=True, help="Neither progress nor statistics.")
@lora_name_option
@json_option
@dry_run_option
@debug_option
@form_options
@sampling_options(temperature=0.0, max_tokens=MAX_TOKENS)
@engine_options
def generate(
    model: str, prompt: str | None, prompt_option: str | None, as_json: bool, dry_run: bool, **options: Any
) -> int:
    """Continue PROMPT with MODEL and stream the text to standard output.

    Without PROMPT, or with "-", the prompt is read from standard input. Temperature 0 is the default: the same command
    gives the same text. Where the context holds fewer than the default --max-tokens, it is the limit.
    """
    args = engine_args(model, options | ({"progress": False} if options["quiet"] else {}))
    if dry_run:
        return show_plan(args, sampling_params(options), as_json=as_json)
    if only_follows(args):
        follow(args)
        return 0
    text = _prompt(prompt, prompt_option)
    params = dataclasses.replace(sampling_params(options), structured_outputs=chosen_form(options))
    _check(params, options, as_json)
    adapter = chosen_adapter(options)
    options["template"] = read_template(options["chat_template"])
    from bestiary.serve.llm import LLM

    with LLM(**vars(args)) as llm:
        request = _run(llm, text, params, options, adapter, show=not as_json)
    if as_json:
        write_json({"model": model, **dataclasses.asdict(request), "stats": stats(request)})
    elif not options["quiet"]:
        say(stats_line(stats(request), ended_by(request)))
    failed = [output for output in request.outputs if output.finish_reason == "error"]
    if failed:
        raise EngineError(f"the answer ended with an error: {failed[0].stop_reason}")
    return 0


def _prompt(argument: str | None, option: str | None) -> str:
    """The prompt, from the one place where it is given. Raises where there is none, several, or an empty one."""
    if argument is not None and option is not None:
        raise click.UsageError("the prompt is given twice: as PROMPT and as --prompt")
    given = argument if option is None else option
    if given is None and sys.stdin.isatty():
        raise click.UsageError("Missing PROMPT: give it as an argument, with --prompt, or on standard input")
    if given is None or given == "-":
        given = read_all()
    else:
        refuse_undecoded(given, "prompt")
    if not given:
        raise RequestError(
            "the prompt is empty",
            code="EMPTY_PROMPT",
            field="prompt",
            limit="at least 1 character",
            fix='bestiary generate MODEL "text", or the text on standard input',
        )
    return given


def _check(params: SamplingParams, options: Mapping[str, Any], as_json: bool) -> None:
    """Refuse options that would do nothing, and say what may surprise."""
    if not options["chat"] and (options["system"] is not None or options["chat_template"] is not None):
        raise click.UsageError("--system and --chat-template need --chat")
    if params.logprobs is not None and not as_json:
        raise click.UsageError("--logprobs needs --json: the text has no place for them")
    if params.n > 1 and params.temperature == 0 and not options["quiet"]:
        say(f"the {params.n} answers will all be alike: --temperature 0 takes the likeliest token each time")


def _run(
    llm: LLM, text: str, params: SamplingParams, options: Mapping[str, Any], adapter: str | None, *, show: bool
) -> RequestOutput:
    ids = _ids(llm, text, options)
    default_length = not is_given(click.get_current_context(), "max_tokens")
    params = within_context(llm, params, len(ids), default_length=default_length)
    writer = TextWriter(sys.stdout) if show else None
    try:
        request = stream(llm, ids, params, writer if params.n == 1 else None, adapter=adapter)
    finally:
        if writer is not None and params.n == 1:
            writer.end()
    if writer is not None and params.n > 1:
        for output in request.outputs:
            writer.write(f"[{output.index}] {output.text}\n")
    request.prompt = text
    return request


def _ids(llm: LLM, text: str, options: Mapping[str, Any]) -> list[int]:
    tokenizer = llm.get_tokenizer()
    if not options["chat"]:
        if options["chat"] is None and tokenizer.chat_template is not None and not options["quiet"]:
            say("continuing the text as it stands; --chat asks through the model's chat template (--raw: say nothing)")
        return tokenizer.encode(text)
    system = [{"role": "system", "content": options["system"]}] if options["system"] is not None else []
    template = options["template"]
    require_template(llm, template, "--chat-template FILE, or --raw to continue the text as it stands")
    return llm.chat_ids([*system, {"role": "user", "content": text}], template=template)
