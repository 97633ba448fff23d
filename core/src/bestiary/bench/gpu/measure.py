"""What is timed: decode steps, a prompt, a queue of requests, attention alone, and a process from its start."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from json import dumps
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from bestiary.api.errors import EngineError
from bestiary.api.sampling import SamplingParams
from bestiary.bench.hardware import wait
from bestiary.bench.workload import Workload
from bestiary.nn.attention.backend import AttentionBackend, AttentionSpec, KVCacheSpec
from bestiary.nn.attention.metadata import AttentionMetadata

from .shapes import Shape

if TYPE_CHECKING:
    from bestiary.serve.llm import LLM

_WARM = 4
_BLOCK = 16
_BEYOND_CACHES = 1 << 29


def decode_seconds(llm: LLM, rows: int, context: int, steps: int, **asked: Any) -> float:
    """The median step of `rows` requests whose prompts of `context` tokens lie behind them. `asked`: of each, beside
    the likeliest tokens (fields of `SamplingParams`)."""
    work, engine = Workload(llm.engine.vocab_size), llm.engine
    params = SamplingParams(**{"temperature": 0, "max_tokens": steps + _WARM + 2, "ignore_eos": True, **asked})
    names = [f"decode-{number}" for number in range(rows)]
    for number, name in enumerate(names):
        engine.add_request(name, work.prompt(context, number), params)
    begun: set[str] = set()
    while len(begun) < rows:
        begun |= {each.request_id for each in engine.step() if each.token_id is not None}
    for _ in range(_WARM):
        engine.step()
    seconds = []
    for _ in range(steps):
        before = time.perf_counter()
        engine.step()
        seconds.append(time.perf_counter() - before)
    for name in names:
        engine.abort(name)
    engine.step()
    return median(seconds)


def prompt_seconds(llm: LLM, length: int, repeats: int = 3) -> float:
    """From a prompt to its first token; the median, after one that does not count."""
    work = Workload(llm.engine.vocab_size)
    params = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)
    seconds = []
    for number in range(repeats + 1):
        ids = work.prompt(length, number)
        before = time.perf_counter()
        llm.generate({"prompt_token_ids": ids}, params, use_tqdm=False)
        seconds.append(time.perf_counter() - before)
    return median(seconds[1:])


def queue_seconds(llm: LLM, lengths: Sequence[tuple[int, int]]) -> float:
    """Requests of (input, output) tokens, all submitted at once, to the last token."""
    work = Workload(llm.engine.vocab_size)
    prompts = [{"prompt_token_ids": work.prompt(given, number)} for number, (given, _) in enumerate(lengths)]
    params = [SamplingParams(temperature=0, max_tokens=wanted, ignore_eos=True) for _, wanted in lengths]
    before = time.perf_counter()
    llm.generate(prompts, params, use_tqdm=False)
    return time.perf_counter() - before


def same_bits(llm: LLM, length: int, output: int) -> bool:
    """Whether four requests get the same log-probabilities alone and together."""
    work = Workload(llm.engine.vocab_size)
    prompts = [{"prompt_token_ids": work.prompt(length + 7 * number, number)} for number in range(4)]
    params = SamplingParams(temperature=0, max_tokens=output, ignore_eos=True, logprobs=1)

    def said(given: list[dict[str, list[int]]]) -> list[object]:
        answers = [each.outputs[0] for each in llm.generate(given, params, use_tqdm=False)]
        return [[(token, step[token].logprob) for token, step in zip(a.token_ids, a.logprobs or [], strict=True)]
                for a in answers]  # fmt: skip

    return said(prompts) == [said([prompt])[0] for prompt in prompts]


def attention_seconds(backend: AttentionBackend, spec: AttentionSpec, step: tuple[int, int, int], device: str) -> float:
    """One layer's attention: `step` is sequences, tokens before, and new tokens of each."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    sequences, context, new = step
    total = context + new
    blocks = -(-total // _BLOCK)
    cache_spec = KVCacheSpec(num_kv_heads=spec.num_kv_heads, head_size=spec.head_size, dtype=dtype)
    cache = torch.randn(*backend.cache_shape(cache_spec, blocks * sequences, _BLOCK), device=device).to(dtype)
    tables = torch.randperm(blocks * sequences, device=device).int().view(sequences, blocks)
    query = torch.randn(sequences * new, spec.num_heads, spec.head_size, device=device).to(dtype)
    metadata = AttentionMetadata(
        query_start=torch.arange(sequences + 1, dtype=torch.int32, device=device) * new,
        seq_lens=torch.full((sequences,), total, dtype=torch.int32, device=device),
        block_tables=tables, slot_mapping=torch.empty(0, dtype=torch.int64, device=device),
        query_lens_host=(new,) * sequences, seq_lens_host=(total,) * sequences, max_query_len=new, max_seq_len=total,
        num_decodes=sequences if new == 1 else 0, block_size=_BLOCK,
    )  # fmt: skip
    return _timed(lambda: backend.forward(query, None, None, cache, metadata, spec, None), device)


def product_rate(multiply: Callable[..., object], shape: tuple[int, int], device: str) -> float:
    """Bytes a second of matrices ``[outputs, inputs]`` times one row; of so many that no cache has them."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    size = shape[0] * shape[1] * dtype.itemsize
    weights = [torch.randn(shape, device=device, dtype=dtype) for _ in range(max(2, min(64, _BEYOND_CACHES // size)))]
    row = torch.randn(1, shape[1], device=device, dtype=dtype)

    def all_of_them() -> None:
        for weight in weights:
            multiply(row, weight)

    return size * len(weights) / _timed(all_of_them, device)


def _timed(work: Callable[[], object], device: str, repeats: int = 20) -> float:
    """Of many calls in a row, each."""
    work()
    wait(device)
    before = time.perf_counter()
    for _ in range(repeats):
        work()
    wait(device)
    return (time.perf_counter() - before) / repeats


_START = """
import sys
from bestiary import LLM, SamplingParams
llm = LLM(sys.argv[1], load_format="dummy", skip_tokenizer_init=True, progress=False, device=sys.argv[2])
llm.generate({"prompt_token_ids": [1, 2, 3]}, SamplingParams(max_tokens=1, ignore_eos=True), use_tqdm=False)
"""


def start_seconds(shape: Shape, device: str) -> float:
    """A fresh process, from its start to its first token, to its end."""
    with TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(dumps({**shape, "torch_dtype": "bfloat16"}), "utf-8")
        before = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", _START, folder, device], capture_output=True, text=True, check=False
        )
        seconds = time.perf_counter() - before
    if done.returncode:
        raise EngineError(f"a fresh process failed: {done.stderr.strip().splitlines()[-1]}", value=done.returncode)
    return seconds
