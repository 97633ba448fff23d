"""One measurement from beginning to end: load, measure the machine, measure the subjects, make the record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from bestiary.api.errors import UsageError

from .hardware import Hardware, measure_hardware
from .latency import LatencyWork, measure_latency
from .limits import Limits, model_cost
from .ops import OpsBench, OpsWork
from .perplexity import Perplexity, PerplexityWork, compared, engine_changes, measure_perplexity
from .record import load_average, new_record
from .subject import BestiarySubject, Subject, model_of
from .throughput import ThroughputWork, measure_throughput
from .workload import Workload

if TYPE_CHECKING:
    from bestiary.serve.llm import LLM

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What both commands take. `engine` goes to `LLM` as it is."""

    model: str
    engine: Mapping[str, Any]
    threads: int | None = None
    seed: int = 0
    compare: str | None = None


def run_latency(options: BenchOptions, work: LatencyWork, say: Say) -> dict[str, Any]:
    """The record of `bench latency`."""
    longest = max(work.prefill_len + 1, work.input_len + work.output_len)
    lengths = (
        f"--prefill-len (now {work.prefill_len}), --input-len and --output-len ({work.input_len} + {work.output_len})"
    )
    with _loaded(options, longest, 1, lengths) as llm:
        limits, subjects, start = _ready(llm, options, say)
        say(f"measuring {work.repeats} rounds of {len(subjects)}")
        results = measure_latency(subjects, _workload(llm, options), work)
        best = {
            "prefill_tok_s": limits.prefill_tok_s(work.prefill_len),
            "decode_tok_s": limits.decode_tok_s(work.input_len, work.output_len),
        }
        reached = {
            name: {
                "prefill": each["prefill"].prefill_tok_s / best["prefill_tok_s"],
                "decode": (each["decode"].decode_tok_s or 0.0) / best["decode_tok_s"],
            }
            for name, each in results.items()
        }
        found = {name: {part: asdict(each) for part, each in parts.items()} for name, parts in results.items()}
        return _record("latency", llm, options, start, limits, work=asdict(work), limits_=best, results=found,
                       fractions=reached)  # fmt: skip


def run_throughput(options: BenchOptions, work: ThroughputWork, say: Say) -> dict[str, Any]:
    """The record of `bench throughput`."""
    lengths = f"--input-len (now {work.shortest}:{work.longest}) and --output-len ({work.output_len})"
    with _loaded(options, work.longest + work.output_len, work.requests, lengths) as llm:
        limits, subjects, start = _ready(llm, options, say)
        workload = _workload(llm, options)
        say(f"measuring {work.repeats} rounds of {len(subjects)}, {work.requests} requests each")
        results = measure_throughput(subjects, workload, work)
        best = limits.output_tok_s([len(ids) for ids in work.prompts(workload)], work.output_len)
        reached = {name: {"output": each.output_tok_s / best} for name, each in results.items()}
        found = {name: asdict(each) for name, each in results.items()}
        return _record("throughput", llm, options, start, limits, work=asdict(work), limits_={"output_tok_s": best},
                       results=found, fractions=reached)  # fmt: skip


def run_perplexity(options: BenchOptions, work: PerplexityWork, methods: Sequence[str], say: Say) -> dict[str, Any]:
    """The record of `bench perplexity`: the model as the options say, and then under each of `methods`."""
    from bestiary.serve.llm import LLM

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    work.read()  # what cannot be read is told before a model is loaded
    changes = [engine_changes(method) for method in methods]
    asked = {name: value for name, value in options.engine.items() if value is not None}
    start = load_average()
    results: dict[str, Perplexity] = {}
    measured: dict[str, Any] = {}
    engine: dict[str, Any] = {}
    for change in [{}, *changes]:
        settings = {**_PERPLEXITY_ENGINE, **asked, **change}
        with LLM(options.model, **settings) as llm:
            label = _label(settings, llm)
            say(f"measuring {label}")
            results[label], measured = measure_perplexity(llm, work)
            engine = engine or {"architecture": llm.vllm_config.model_config.architecture, "dtype": _dtype(llm)}
    return new_record(
        "perplexity",
        options.model,
        engine=engine,
        load_average={"start": start, "end": load_average()},
        workload=measured,
        results=compared(results),
    )


def run_ops(options: BenchOptions, work: OpsWork, say: Say) -> dict[str, Any]:
    """The record of `bench ops`."""
    longest = max(work.prefill_len + 1, work.input_len + work.output_len)
    lengths = f"--prefill-len (now {work.prefill_len}), --input-len and --output-len"
    with _loaded(options, longest, max(work.batch), lengths) as llm:
        limits, _, start = _ready(llm, options, say)
        bench = OpsBench(llm, _workload(llm, options), work)
        found = {}
        for rows in work.batch:
            say(f"measuring decode steps of {rows}")
            found[f"decode {rows}"] = bench.decode(rows)
        say(f"measuring a prompt of {work.prefill_len}")
        found[f"prefill {work.prefill_len}"] = bench.prefill()
        results = {title: each.as_dict(limits.hardware) for title, each in found.items()}
        return _record("ops", llm, options, start, limits, work=asdict(work), limits_={}, results=results,
                       fractions={})  # fmt: skip


_PERPLEXITY_ENGINE: Mapping[str, Any] = {
    "max_num_seqs": 1, "max_num_batched_tokens": 512, "enable_prefix_caching": False,
}  # fmt: skip
"""One window at a time, in pieces, so that the logits in memory are few."""


def _label(settings: Mapping[str, Any], llm: LLM) -> str:
    """How a row of the table is called: ``float32``, ``int8``, ``int8+kv=fp8`` …"""
    cache = settings.get("kv_cache_dtype", "auto")
    parts = [settings.get("quantization") or _dtype(llm), *([] if cache == "auto" else [f"kv={cache}"])]
    return "+".join(parts)


def _dtype(llm: LLM) -> str:
    return str(llm.vllm_config.model_config.dtype).removeprefix("torch.")


def _loaded(options: BenchOptions, longest: int, requests: int, lengths: str) -> LLM:
    """The model, with a context of `longest` tokens; `lengths` names the options that made it so long.

    Raises:
        UsageError: the context is shorter, by --max-model-len or because the model has no longer one.
    """
    from bestiary.serve.llm import LLM

    engine = _engine_options(options, longest, requests)
    asked = f"the longest prompt and its answer are {longest} tokens"
    if engine["max_model_len"] < longest:
        raise _too_short(f"{asked}, more than --max-model-len {engine['max_model_len']}", lengths)
    try:
        return LLM(options.model, **engine)
    except UsageError as error:
        if error.field != "max_model_len" or options.engine.get("max_model_len") is not None:
            raise
        raise _too_short(f"{asked}, but {error.message}", lengths) from error


def _too_short(message: str, lengths: str) -> UsageError:
    return UsageError(message, field="max_model_len", fix=f"lower {lengths}")


def _engine_options(options: BenchOptions, longest: int, requests: int) -> dict[str, Any]:
    """No prefix cache: a prompt met twice would cost nothing."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    asked = {name: value for name, value in options.engine.items() if value is not None}
    defaults = {"max_model_len": longest, "max_num_seqs": requests, "enable_prefix_caching": False}
    return {**defaults, "skip_tokenizer_init": True, **asked}


def _ready(llm: LLM, options: BenchOptions, say: Say) -> tuple[Limits, list[Subject], float | None]:
    start = load_average()
    say("measuring the machine")
    config = llm.vllm_config
    hardware = measure_hardware(config.device_config.device, config.model_config.dtype)
    limits = Limits(model_cost(model_of(llm)), hardware)
    subjects: list[Subject] = [BestiarySubject(llm)]
    if options.compare == "transformers":
        from .against_transformers import transformers_subject

        say("loading the same weights into transformers")
        subjects.append(transformers_subject(llm))
    return limits, subjects, start


def _workload(llm: LLM, options: BenchOptions) -> Workload:
    return Workload(llm.engine.vocab_size, options.seed)


def _record(
    kind: str,
    llm: LLM,
    options: BenchOptions,
    start: float | None,
    limits: Limits,
    *,
    work: dict[str, Any],
    limits_: dict[str, float],
    results: dict[str, Any],
    fractions: dict[str, Any],
) -> dict[str, Any]:
    config = llm.vllm_config
    return new_record(
        kind,
        options.model,
        engine={
            "architecture": config.model_config.architecture,
            "dtype": _dtype(llm),
            "ops": dict(llm.engine.ops),
        },
        hardware=_hardware(limits.hardware),
        load_average={"start": start, "end": load_average()},
        workload={"seed": options.seed, **work},
        limits={**limits.as_dict(), **limits_},
        results=results,
        fractions=fractions,
    )


def _hardware(hardware: Hardware) -> dict[str, Any]:
    return asdict(hardware)
