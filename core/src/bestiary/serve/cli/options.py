"""Options that commands share, made from the fields of `EngineArgs` and `SamplingParams`.

A field's type makes the option's kind, its default the option's default; the tables below hold the words. A command is
decorated with `engine_options` and `sampling_options`, takes ``**options``, and hands them to `engine_args` and
`sampling_params`. Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from bestiary.api.pooling import POOLING_TYPES
from bestiary.api.sampling import SamplingParams
from bestiary.engine.arguments import EngineArgs

from .kinds import JSON_OBJECT, MEMORY, NUMBERS, PAIR, Kind
from .settings import with_project_plugins

Command = TypeVar("Command", bound=Callable[..., Any])

ENGINE_HELP = {
    "tokenizer": "Directory of another tokenizer.",
    "revision": "Branch, tag or commit of a hub id.",
    "download_dir": "Where models of the hub are kept.",
    "dtype": "Type of weights and activations; auto: the checkpoint's, or float32 where this CPU is slow in it.",
    "device": "Where to run.",
    "seed": "Seed of all random draws.",
    "deterministic": "Answers do not depend on what else is computed; slower.",
    "max_model_len": "Most tokens of prompt and answer together.",
    "max_num_seqs": "Most sequences in one step (default: 64, on a GPU 256).",
    "max_num_batched_tokens": "Most tokens in one step (default: 2048, on a GPU 8192).",
    "enable_chunked_prefill": "Compute long prompts in pieces.",
    "enable_prefix_caching": "Reuse the KV cache of prompts that begin alike.",
    "max_queue": "Most waiting requests.",
    "async_scheduling": "Plan a step before the tokens of the one before it are known (default: on a GPU).",
    "block_size": "Tokens of a KV-cache block.",
    "num_gpu_blocks_override": "Exact number of KV-cache blocks, on any device.",
    "kv_cache_memory_bytes": "Memory of the KV cache: bytes, or 512M, 2G (powers of 1024).",
    "kv_cache_dtype": "Type of the KV cache; auto: the model's, or its weights' under native kernels.",
    "hf_config_path": "Another config.json, or a directory or hub id that holds one.",
    "hf_overrides": "Fields to change in config.json, as a JSON object.",
    "load_format": "How weights are read: auto, safetensors, gguf, dummy (random), or a plugin's format.",
    "allow_nonfinite": "Accept NaN and Inf in weights.",
    "verify": "Compare weight files with their published checksums first.",
    "quantization": "Quantize while loading, by this method.",
    "attention_backend": "Attention backend, by name.",
    "kernels": "Kernels of all installed packages (auto), or core's own (torch).",
    "enforce_eager": "Record no decode steps: run every one op by op.",
    "capture_sizes": "Record decode steps as their sizes come, or all before the first request (on CUDA).",
    "ops": "Implementation of an op, by name; repeatable.",
    "structured_outputs_backend": "What enforces the form of answers, by name.",
    "lora_modules": "An adapter (LoRA): its name and its directory; repeatable.",
    "max_loras": "Most different adapters in one step.",
    "max_lora_rank": "Largest rank of an adapter.",
    "max_cpu_loras": "Most adapters in memory.",
    "plugin": "Which distribution provides an architecture, where several do; repeatable.",
    "runner": "Generate text, or make a vector of each prompt; auto: what the model is made for.",
    "pooling_type": "Of which hidden states vectors are made: the last token's, the first one's, all of them.",
    "tensor_parallel_size": "Processes that share each tensor.",
    "pipeline_parallel_size": "Stages that share the layers.",
    "data_parallel_size": "Copies of the model, for different requests.",
    "enable_expert_parallel": "Whole experts to each tensor-parallel process, instead of slices of all.",
    "pipeline_layers": "Layers of each stage: 10,12,10.",
    "enable_eplb": "Move and copy experts after measured load.",
    "eplb_config": "num_redundant_experts, window_size, step_interval, as a JSON object.",
    "nnodes": "Machines.",
    "node_rank": "Which machine this is, from 0.",
    "master_addr": "Where the first machine is met; with several, it listens there.",
    "master_port": "Its port.",
    "distributed_executor_backend": "Who starts the processes.",
    "stall_timeout": "Seconds that a process may wait for another in the middle of a step.",
    "progress": "Show how far loading is, on standard error.",
}
"""`EngineArgs` field → help. No options on purpose: `skip_tokenizer_init`, for the command line deals in text, and
`enable_lora`, which --lora implies."""

SAMPLING_HELP = {
    "n": "Independent answers to the prompt.",
    "temperature": "0 takes the likeliest token; higher is more varied.",
    "top_p": "Draw from the likeliest tokens that together have this probability.",
    "top_k": "Draw from this many likeliest tokens; 0: all.",
    "min_p": "Draw from tokens at least this many times as likely as the likeliest.",
    "repetition_penalty": "Divide the logits of tokens seen before; 1: off.",
    "presence_penalty": "Subtract from the logits of tokens generated before.",
    "frequency_penalty": "The same, for each occurrence.",
    "max_tokens": "Most tokens to generate.",
    "min_tokens": "Tokens before which the answer does not end.",
    "stop": "Text that ends the answer; repeatable.",
    "ignore_eos": "Go on after the model's end-of-sequence token.",
    "logprobs": "Give this many likeliest tokens' log-probabilities with each token (with --json).",
    "skip_special_tokens": "Leave special tokens out of the text.",
}
"""`SamplingParams` field → help. `seed` is the engine's option; lists of token ids are for Python."""

_FLAGS = {
    "ops": "--op",
    "lora_modules": "--lora",
    "tensor_parallel_size": "--tensor-parallel-size/--tp",
    "pipeline_parallel_size": "--pipeline-parallel-size/--pp",
    "data_parallel_size": "--data-parallel-size/--dp",
    "enable_expert_parallel": "--enable-expert-parallel/--ep",
}
"""Flags that are not the field's name; after a slash, a short form."""
_KINDS: dict[str, Kind] = {
    "dtype": click.Choice(["auto", "float32", "bfloat16", "float16"]),
    "kernels": click.Choice(["auto", "torch"]),
    "capture_sizes": click.Choice(["lazily", "at_start"]),
    "device": click.Choice(["auto", "cpu", "cuda"]),
    "kv_cache_dtype": click.Choice(["auto", "float32", "bfloat16", "float16", "int8", "fp8", "fp8_e4m3", "fp8_e5m2"]),
    "kv_cache_memory_bytes": MEMORY,
    "hf_overrides": JSON_OBJECT,
    "eplb_config": JSON_OBJECT,
    "pipeline_layers": NUMBERS,
    "runner": click.Choice(["auto", "generate", "pooling"]),
    "pooling_type": click.Choice(POOLING_TYPES),
    "distributed_executor_backend": click.Choice(["mp", "external_launcher", "ray"]),
}
_REPEATED: dict[str, tuple[Kind, str]] = {
    "ops": (PAIR, "NAME=IMPLEMENTATION"),
    "plugin": (PAIR, "ARCHITECTURE=DISTRIBUTION"),
    "lora_modules": (PAIR, "NAME=PATH"),
    "stop": (click.STRING, "TEXT"),
}
_UNSET = {
    "tokenizer": "the model's own",
    "download_dir": "the hub's cache",
    "max_model_len": "as trained",
    "max_queue": "no limit",
    "num_gpu_blocks_override": "what fits",
    "kv_cache_memory_bytes": "half of the free memory (4 GiB of it on a CPU), at most what can be used",
    "max_tokens": "as many as the context allows",
    "attention_backend": "the best that can run",
    "pooling_type": "as the model says, or LAST",
    "pipeline_layers": "evenly",
}
"""What the default None means, for the help text."""


class Option(click.Option):
    """An option that stands under its own heading in the help text."""

    section = "Options"


class EngineOption(Option):
    section = "Engine options"


class SamplingOption(Option):
    section = "Sampling options"


class SectionedCommand(click.Command):
    """A command whose help text lists options under their headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                sections.setdefault(getattr(parameter, "section", "Options"), []).append(record)
        for title in sorted(sections, key=lambda name: (name != "Options", name)):
            with formatter.section(title):
                formatter.write_dl(sections[title])


def engine_options_with(**defaults: Any) -> Callable[[Command], Command]:
    """Add an option for every field of `EngineArgs` that `ENGINE_HELP` describes, with `defaults` of its own."""
    return lambda command: _add(command, EngineArgs, ENGINE_HELP, EngineOption, defaults)


def engine_options(command: Command) -> Command:
    """The same, with the defaults of `EngineArgs`."""
    return engine_options_with()(command)


def sampling_options(*, leave_out: Sequence[str] = (), **defaults: Any) -> Callable[[Command], Command]:
    """Add an option for every field of `SamplingParams` that `SAMPLING_HELP` describes, with `defaults` of its own,
    except those the command has no use for."""
    words = {name: text for name, text in SAMPLING_HELP.items() if name not in leave_out}
    return lambda command: _add(command, SamplingParams, words, SamplingOption, defaults)


def model_argument(command: Command) -> Command:
    """Add MODEL, which shells complete to files and short names."""
    return click.argument("model", shell_complete=_complete_model)(command)


def optional_model_argument(command: Command) -> Command:
    """The same for a command that can do without: the parameter is None then."""
    return click.argument("model", required=False, shell_complete=_complete_model)(command)


def debug_option(command: Command) -> Command:
    """Add --debug, which `main` looks for itself."""
    option = click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
    return option(command)


def json_option(command: Command) -> Command:
    """Add --json (parameter `as_json`), which `main` looks for as well, to show errors in kind."""
    return click.option("--json", "as_json", is_flag=True, help="Write one JSON document to standard output.")(command)


def engine_args(model: str, options: Mapping[str, Any]) -> EngineArgs:
    """The engine's arguments among a command's options."""
    found = _among(options, ENGINE_HELP)
    return EngineArgs.make(model, found | {"plugin": with_project_plugins(found["plugin"])})


def sampling_params(options: Mapping[str, Any]) -> SamplingParams:
    """The sampling parameters among a command's options; a --seed that somebody has set is theirs too."""
    context = click.get_current_context(silent=True)
    given = context is not None and context.get_parameter_source("seed") is not click.core.ParameterSource.DEFAULT
    seed = {"seed": options["seed"]} if given else {}
    return SamplingParams(**_among(options, SAMPLING_HELP), **seed)


def _among(options: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    found = {name: value for name, value in options.items() if name in names}
    return {name: dict(value) if _REPEATED.get(name, ("",))[0] is PAIR else value for name, value in found.items()}


def _add(command: Command, owner: type, words: Mapping[str, str], cls: type[Option], own: Mapping[str, Any]) -> Command:
    types = typing.get_type_hints(owner)
    fields = {field.name: field for field in dataclasses.fields(owner)}
    for name, text in reversed(list(words.items())):
        field = fields[name]
        default = field.default_factory() if callable(field.default_factory) else field.default
        command = _option(name, text, types[name], own.get(name, default), cls)(command)
    return command


def _option(name: str, text: str, kind: Any, default: Any, cls: type[Option]) -> Callable[[Command], Command]:
    flag, *short = _FLAGS.get(name, f"--{name.replace('_', '-')}").split("/")
    if name in _REPEATED:
        element, shown = _REPEATED[name]
        return click.option(flag, name, cls=cls, type=element, multiple=True, metavar=shown, help=text)
    if kind is bool:
        both = f"{flag}/--no-{flag[2:]}" if default else flag
        return click.option(
            both, *short, name, cls=cls, is_flag=True, default=default, show_default=bool(default), help=text
        )
    if bool in typing.get_args(kind):
        return click.option(f"{flag}/--no-{flag[2:]}", *short, name, cls=cls, is_flag=True, default=default, help=text)
    shown_default: bool | str = _UNSET.get(name, False) if default is None else default != {}
    found = _KINDS.get(name) or _plain(kind)
    return click.option(flag, *short, name, cls=cls, type=found, default=default, show_default=shown_default, help=text)


def _plain(kind: Any) -> Kind:
    """``int``, ``float`` or ``str``, possibly with ``| None``."""
    wanted: dict[Any, Kind] = {int: click.INT, float: click.FLOAT, str: click.STRING}
    return next(wanted[each] for each in (kind, *typing.get_args(kind)) if each in wanted)


def _complete_model(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Files first: click's script for bash forgets what it has collected when it comes to them."""
    from bestiary.engine.loader.sources import ShortNames

    names = [CompletionItem(name, help=line) for name, line in ShortNames().names().items()]
    files = CompletionItem(incomplete, type="file")
    return [files, *(item for item in names if item.value.startswith(incomplete))]
