"""The rows of the table: what is measured of which shape, its limit, and what is asked for (figures for an H100)."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from bestiary.api.errors import EngineError
from bestiary.bench.hardware import Hardware
from bestiary.bench.limits import Limits, model_cost
from bestiary.bench.subject import model_of
from bestiary.engine.model_layers import attention_layers
from bestiary.nn.attention.backend import AttentionBackend, AttentionSpec
from bestiary.nn.ops.linear import linear
from bestiary.nn.ops.registry import Target
from bestiary.nn.triton.offers import LINEAR_OF_ONE

from . import measure, others
from .shapes import SHAPES, Shape, engine, tiny

if TYPE_CHECKING:
    from bestiary.serve.llm import LLM


_SERVING: Mapping[str, Any] = {"capture_sizes": "at_start", "max_num_batched_tokens": 8192}
"""As one would serve on such a GPU: queues come to an engine that has its steps, and prompts fill it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measured number beside what the machine allows.

    Attributes:
        limit: in the figure's unit; None where there is none. fraction: of the limit that was reached.
        wanted: the fraction, or where `limit` is None the figure, that is asked for; and the one hoped for.
    """

    name: str
    what: str
    value: float
    unit: str
    limit: float | None = None
    fraction: float | None = None
    wanted: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Machine:
    """Where it is measured, and whether the shapes are `small` ones, to try the command."""

    device: str
    hardware: Hardware
    small: bool = False

    def shape(self, name: str) -> Shape:
        return tiny(SHAPES[name]) if self.small else SHAPES[name]

    def size(self, full: int, small: int) -> int:
        return small if self.small else full

    def options(self, **more: Any) -> dict[str, Any]:
        return {"device": self.device, **({"num_gpu_blocks_override": 256} if self.small else {}), **more}


def _limits(machine: Machine, llm: LLM) -> Limits:
    return Limits(model_cost(model_of(llm)), machine.hardware)


def single(machine: Machine) -> Iterator[Figure]:
    """G1: one request, 128 tokens in, 128 out."""
    context, steps = machine.size(128, 16), machine.size(124, 4)
    with engine(
        machine.shape("llama-3-8b"), **machine.options(max_num_seqs=1, max_model_len=machine.size(512, 64))
    ) as llm:
        seconds = measure.decode_seconds(llm, 1, context, steps)
        limit = _limits(machine, llm).decode_seconds([context + steps // 2])
    yield Figure(name="G1", what="Llama-3-8B shape, batch 1", value=seconds * 1e3, unit="ms/token", limit=limit * 1e3,
                 fraction=limit / seconds, wanted=(0.75, 0.88))  # fmt: skip


def batches(machine: Machine) -> Iterator[Figure]:
    """G2: decoding at a context of 1,000 tokens."""
    rows = (32, 128) if not machine.small else (2, 4)
    yield from _decoding("G2", machine, "llama-3-8b", rows, machine.size(1024, 24))


def _decoding(name: str, machine: Machine, shape: str, rows: tuple[int, int], context: int) -> Iterator[Figure]:
    """Steps of so many requests, each with so many tokens behind it."""
    options = machine.options(max_num_seqs=rows[-1], max_model_len=machine.size(context + 128, 64))
    with engine(machine.shape(shape), **options) as llm:
        for count in rows:
            seconds = measure.decode_seconds(llm, count, context, machine.size(32, 4))
            best = _limits(machine, llm).decode_seconds([context + 16] * count)
            yield Figure(name=name, what=f"{shape} shape, batch {count} at {context} tokens", value=count / seconds,
                         unit="tok/s", limit=count / best, fraction=best / seconds, wanted=(0.6, 0.8))  # fmt: skip


def offline(machine: Machine) -> Iterator[Figure]:
    """G3: nano-vllm's workload: 256 requests, inputs and outputs uniform in 100 … 1024, seed 0."""
    chosen = random.Random(0)
    low, high = machine.size(100, 4), machine.size(1024, 12)
    given = [chosen.randint(low, high) for _ in range(machine.size(256, 4))]
    lengths = [(each, chosen.randint(low, high)) for each in given]
    output = sum(wanted for _, wanted in lengths)
    for name, wanted in (("qwen3-0.6b", (12_000, 18_000)), ("qwen3-8b", (5_900, 7_800))):
        options = machine.options(max_num_seqs=machine.size(256, 4), max_model_len=machine.size(2048, 32), **_SERVING)
        with engine(machine.shape(name), **options) as llm:
            measure.queue_seconds(llm, lengths[:4])
            seconds = measure.queue_seconds(llm, lengths)
        yield Figure(name="G3", what=f"{name} shape, {len(lengths)} requests", value=output / seconds,
                     unit="out tok/s", wanted=wanted)  # fmt: skip


def prompt(machine: Machine) -> Iterator[Figure]:
    """G4: a prompt of 8,000 tokens."""
    length = machine.size(8000, 48)
    options = machine.options(max_num_seqs=1, max_model_len=machine.size(8192, 64), max_num_batched_tokens=length)
    with engine(machine.shape("llama-3-8b"), **options) as llm:
        seconds = measure.prompt_seconds(llm, length)
        best = _limits(machine, llm).prefill_seconds(length)
    yield Figure(name="G4", what=f"Llama-3-8B shape, prompt of {length}", value=seconds * 1e3, unit="ms",
                 limit=best * 1e3, fraction=best / seconds, wanted=(0.55, 0.75))  # fmt: skip


def attention(machine: Machine) -> Iterator[Figure]:
    """G5: one layer's attention alone, 32 heads on 8, of 128 channels."""
    small = {"num_heads": 4, "num_kv_heads": 2, "head_size": 16}
    full = {"num_heads": 32, "num_kv_heads": 8, "head_size": 128}
    sizes = small if machine.small else full
    spec = AttentionSpec(
        num_heads=sizes["num_heads"], num_kv_heads=sizes["num_kv_heads"], head_size=sizes["head_size"],
        scale=sizes["head_size"] ** -0.5,
    )  # fmt: skip
    backend = _backend(machine)
    sequences, context = machine.size(64, 2), machine.size(8191, 31)
    seconds = measure.attention_seconds(backend, spec, (sequences, context, 1), machine.device)
    width = 2 if machine.device == "cuda" else 4
    read = sequences * (context + 1) * 2 * spec.num_kv_heads * spec.head_size * width / seconds
    yield Figure(name="G5", what=f"attention, {sequences} requests at {context + 1}", value=read / 1e9, unit="GB/s",
                 limit=machine.hardware.bytes_per_s / 1e9, fraction=read / machine.hardware.bytes_per_s,
                 wanted=(0.7, 0.9))  # fmt: skip
    length = machine.size(8192, 32)
    seconds = measure.attention_seconds(backend, spec, (1, 0, length), machine.device)
    done = 4 * spec.num_heads * spec.head_size * (length * (length + 1) / 2) / seconds
    yield Figure(name="G5", what=f"attention, prompt of {length}", value=done / 1e12, unit="TFLOP/s",
                 limit=machine.hardware.flops / 1e12, fraction=done / machine.hardware.flops,
                 wanted=(0.44, 0.61))  # fmt: skip


def _backend(machine: Machine) -> AttentionBackend:
    """The one that an engine would take."""
    with engine(
        machine.shape("qwen3-0.6b"), **machine.options(max_model_len=64, max_num_seqs=1, kernels="torch")
    ) as llm:
        backend = next(iter(attention_layers(model_of(llm)).values())).backend
    if backend is None:
        raise EngineError("the engine's attention has no backend")
    return backend


def experts(machine: Machine) -> Iterator[Figure]:
    """G6: a mixture of experts."""
    rows = (1, 64) if not machine.small else (1, 2)
    yield from _decoding("G6", machine, "qwen3-30b-a3b", rows, machine.size(512, 16))


def eight_bits(machine: Machine) -> Iterator[Figure]:
    """G7: fp8 weights, activations and cache, 1,000 tokens in, 1,000 out."""
    length, count = machine.size(1000, 8), machine.size(256, 2)
    options = machine.options(
        max_num_seqs=count, max_model_len=2 * length + 16, quantization="fp8_dynamic", kv_cache_dtype="fp8", **_SERVING
    )
    with engine(machine.shape("llama-3-8b"), **options) as llm:
        measure.queue_seconds(llm, [(16, 2)])
        seconds = measure.queue_seconds(llm, [(length, length)] * count)
        best = _limits(machine, llm).output_tok_s([length] * count, length)
    value = count * length / seconds
    yield Figure(name="G7", what=f"Llama-3-8B shape, fp8, {count} requests of {length} + {length}", value=value,
                 unit="out tok/s", limit=best, fraction=value / best, wanted=(0.56, 0.74))  # fmt: skip


def starting(machine: Machine) -> Iterator[Figure]:
    """G8: a fresh process to its first token."""
    seconds = measure.start_seconds(machine.shape("llama-3-8b"), machine.device)
    yield Figure(name="G8", what="Llama-3-8B shape, process start to first token", value=seconds, unit="s",
                 wanted=(20.0, 8.0))  # fmt: skip


def exactly(machine: Machine) -> Iterator[Figure]:
    """G9: what the same bits in every batch cost."""
    context, rows = machine.size(1024, 16), machine.size(32, 2)
    found = {}
    for deterministic in (False, True):
        options = machine.options(max_num_seqs=rows, max_model_len=machine.size(1152, 64), deterministic=deterministic)
        with engine(machine.shape("llama-3-8b"), **options) as llm:
            found[deterministic] = measure.decode_seconds(llm, rows, context, machine.size(32, 4))
            same = measure.same_bits(llm, machine.size(100, 8), machine.size(16, 3)) if deterministic else True
    if not same:
        raise EngineError("a deterministic engine gave other log-probabilities alone than in a batch")
    yield Figure(name="G9", what=f"deterministic (same bits, checked), batch {rows}: slower by",
                 value=100 * (found[True] / found[False] - 1), unit="%", wanted=(20.0, 5.0))  # fmt: skip


def transformers_single(machine: Machine) -> Iterator[Figure]:
    """T1: G1 by transformers' `generate`."""
    with others.loaded(machine.shape("llama-3-8b"), machine.device) as model:
        seconds = others.decode_seconds(model, machine.size(128, 16), machine.size(64, 4))
    yield Figure(name="T1", what="transformers, Llama-3-8B shape, batch 1", value=seconds * 1e3, unit="ms/token")


def queues(machine: Machine) -> Iterator[Figure]:
    """T2: the same queue by transformers' continuous batching, and here."""
    count, length = machine.size(64, 2), machine.size(256, 8)
    name = "qwen3-0.6b"
    with others.loaded(machine.shape(name), machine.device) as model:
        theirs = others.queue_seconds(model, count, length, length, machine.device)
    options = machine.options(max_num_seqs=count, max_model_len=2 * length + 16, **_SERVING)
    with engine(machine.shape(name), **options) as llm:
        measure.queue_seconds(llm, [(8, 4)])
        ours = measure.queue_seconds(llm, [(length, length)] * count)
    what = f"{name} shape, {count} requests of {length} + {length}"
    yield Figure(name="T2", what=f"transformers, {what}", value=count * length / theirs, unit="out tok/s")
    yield Figure(name="T2", what=f"bestiary, {what}", value=count * length / ours, unit="out tok/s")


def one_row(machine: Machine) -> Iterator[Figure]:
    """T3: the products of one row in an 8B layer, by torch and by core's kernel."""
    versions = {"torch": linear.reference}
    if LINEAR_OF_ONE.why_not(Target(machine.device, torch.bfloat16)) is None:
        versions["core"] = LINEAR_OF_ONE.function
    for outputs, inputs in ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)):
        shape = machine.size(outputs, outputs // 64), machine.size(inputs, inputs // 64)
        for name, multiply in versions.items():
            read, most = measure.product_rate(multiply, shape, machine.device), machine.hardware.bytes_per_s
            yield Figure(name="T3", what=f"{name}, 1 × {shape[1]} × {shape[0]}", value=read / 1e9, unit="GB/s",
                         limit=most / 1e9, fraction=read / most)  # fmt: skip


_ASKED: Mapping[str, Mapping[str, Any]] = {
    "the likeliest tokens": {},
    "draws with top-p": {"temperature": 0.8, "top_p": 0.95},
    "repetition penalty": {"repetition_penalty": 1.1},
    "five log-probabilities": {"logprobs": 5},
}


def asking(machine: Machine) -> Iterator[Figure]:
    """T4: steps of requests that ask more of their tokens: what the host does for them, the device should not see."""
    rows, context = machine.size(64, 2), machine.size(512, 16)
    with engine(
        machine.shape("qwen3-0.6b"), **machine.options(max_num_seqs=rows, max_model_len=machine.size(1024, 64))
    ) as llm:
        for what, asked in _ASKED.items():
            seconds = measure.decode_seconds(llm, rows, context, machine.size(64, 4), **asked)
            yield Figure(name="T4", what=f"qwen3-0.6b shape, batch {rows}, {what}", value=seconds * 1e3, unit="ms")


ROWS: Mapping[str, Callable[[Machine], Iterator[Figure]]] = {
    "G1": single, "G2": batches, "G3": offline, "G4": prompt, "G5": attention, "G6": experts, "G7": eight_bits,
    "G8": starting, "G9": exactly, "T1": transformers_single, "T2": queues,
    "T3": one_row, "T4": asking,
}  # fmt: skip
