"""Programs: requests that are added, stepped and aborted in some order on some engine, against one request at a time.

A program is data: a `Trace`, which a failing test leaves as a file and `replay` runs again.

    python -m tests.trust.support.programs trace.json
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bestiary import LLM, LoRARequest, SamplingParams
from bestiary.api.outputs import CompletionOutput, RequestOutput

from .adapters import write_adapters
from .golden import Golden
from .t0 import write_t0

TIE = 1e-4
_HEADS = ([70 + number % 11 for number in range(40)], [9] * 40, [3 * number % 200 + 5 for number in range(40)])
_KINDS: Mapping[str, Mapping[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "random": {"temperature": 1.0},
    "cut": {"temperature": 0.8, "top_p": 0.9, "top_k": 40, "min_p": 0.01},
    "shaped": {
        "temperature": 0.9, "repetition_penalty": 1.1, "presence_penalty": 0.3, "frequency_penalty": 0.2,
        "logit_bias": {5: 1.5}, "bad_token_ids": [7],
    },
}  # fmt: skip
_ENDS: Mapping[str, Mapping[str, Any]] = {
    "length": {"ignore_eos": True},
    "eos": {"ignore_eos": False},
    "ids": {"ignore_eos": True, "stop_token_ids": [*range(100, 130)], "min_tokens": 2},
    "strings": {"ignore_eos": True, "stop": ["e", "th", "✓", "\ufffd\ufffd"]},
    "choice": {"structured_outputs": {"choice": ["yes", "no", "owl and dragon"]}},
    "schema": {"structured_outputs": {"json": {"type": "object", "properties": {"a": {"enum": [1, 22]}},
                                               "required": ["a"], "additionalProperties": False}}},
}  # fmt: skip
SHAPE: Mapping[str, list[Any]] = {
    "head": [0, 1, 2], "length": [9, 1, 17, 33], "own": [[], [200, 201, 202]],
    "kind": list(_KINDS), "end": ["length", "length", "length", "eos", "ids", "strings", "choice", "schema"],
    "max_tokens": [6, 1, 14], "n": [1, 1, 1, 2, 3], "priority": [0, 1, 2], "lora": [None, None, "a", "b", "c"],
    "salt": [None, None, "s"],
}  # fmt: skip
"""What a request may look like: every entry a list to choose from. So few that the oracle is often asked the same."""
ENGINES: Mapping[str, Mapping[str, Any]] = {
    "roomy": {"max_num_batched_tokens": 64, "num_gpu_blocks_override": 80, "block_size": 8},
    "tight": {"max_num_batched_tokens": 16, "num_gpu_blocks_override": 15, "block_size": 4, "max_num_seqs": 6},
    "by token": {"max_num_batched_tokens": 3, "num_gpu_blocks_override": 64, "block_size": 1},
    "no cache": {"max_num_batched_tokens": 7, "num_gpu_blocks_override": 9, "block_size": 8,
                 "enable_prefix_caching": False},
    "whole prompts": {"max_num_batched_tokens": 48, "num_gpu_blocks_override": 5, "block_size": 16,
                      "enable_chunked_prefill": False},
    "deterministic": {"max_num_batched_tokens": 9, "num_gpu_blocks_override": 15, "block_size": 4,
                      "deterministic": True},
}  # fmt: skip
"""Small enough for preemption to be the rule; 60 tokens, the longest request, fit into each."""


@dataclass
class Trace:
    """A program: an engine of `ENGINES`, and actions: ``["add", shape]``, ``["step", times]``, ``["abort", which]``."""

    engine: str
    actions: list[list[Any]] = field(default_factory=list)

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def read(cls, path: Path) -> Trace:
        return cls(**json.loads(path.read_text()))


class Wrong(AssertionError):
    """An answer differs from the oracle's."""


class Laboratory:
    """T0 with adapters: the engines, each made once, and the oracles, one that is deterministic and one that is not."""

    def __init__(self, root: Path) -> None:
        self._model = str(write_t0(root / "t0"))
        self._adapters = write_adapters(root / "adapters")
        self._engines: dict[str, LLM] = {}
        self._oracles: dict[bool, Golden] = {}
        self.seen: Counter[str] = Counter()

    def engine(self, name: str) -> LLM:
        if name not in self._engines:
            options = {"dtype": "float32", "progress": False, "lora_modules": self._adapters, "max_loras": 2}
            made = LLM(self._model, **(options | {"max_lora_rank": 4} | dict(ENGINES[name])))
            made.engine.use_tokenizer(made._forms.tokenizer_json)  # for grammars, as `generate` does
            self._engines[name] = made
        return self._engines[name]

    def oracle(self, deterministic: bool) -> Golden:
        if deterministic not in self._oracles:
            options = {"lora_modules": self._adapters, "max_lora_rank": 4, "num_gpu_blocks_override": 80}
            self._oracles[deterministic] = Golden(self._model, deterministic=deterministic, **options)
        return self._oracles[deterministic]

    def close(self) -> None:
        for each in (*self._engines.values(), *self._oracles.values()):
            each.close()


def prompt_of(shape: Mapping[str, Any]) -> list[int]:
    return [*_HEADS[shape["head"]][: shape["length"]], *shape["own"]]


def params_of(shape: Mapping[str, Any]) -> SamplingParams:
    chosen = {**_KINDS[shape["kind"]], **_ENDS[shape["end"]]}
    chosen["min_tokens"] = min(chosen.get("min_tokens", 0), shape["max_tokens"])
    return SamplingParams(n=shape["n"], max_tokens=shape["max_tokens"], seed=4, logprobs=2, **chosen)


class Program:
    """One run of a trace, action by action."""

    def __init__(self, laboratory: Laboratory, trace: Trace) -> None:
        self.laboratory, self.trace = laboratory, trace
        self._llm = laboratory.engine(trace.engine)
        self._before = self._llm.engine.stats()
        self._asked: list[tuple[Mapping[str, Any], RequestOutput]] = []

    @property
    def live(self) -> list[RequestOutput]:
        return [request for _, request in self._asked if not request.finished]

    def do(self, what: str, how: Any) -> None:
        """One action; it is added to the trace."""
        self.trace.actions.append([what, how])
        if what == "add":
            adapter = None if how["lora"] is None else LoRARequest(how["lora"])
            request = self._llm._outputs.add(
                f"program {len(self._asked)}", None, prompt_of(how), params_of(how),
                priority=how["priority"], cache_salt=how["salt"], lora_request=adapter,
            )  # fmt: skip
            self._asked.append((how, request))
        elif what == "step":
            for _ in range(how):
                self._llm._step()
        elif self.live:
            self._llm._outputs.abort(self.live[how % len(self.live)])

    def finish(self) -> None:
        """Run to the end. Raises `Wrong` for an answer that is not the oracle's, or for blocks that are still held."""
        while self.live:
            self._llm._step()
        for shape, request in self._asked:
            self._check(shape, request)
        stats = self._llm.engine.stats()
        if stats.running or stats.waiting or stats.kv_cache.used_blocks:
            raise Wrong(f"after the last request: {stats}")
        seen = self.laboratory.seen
        seen["programs"] += 1
        seen["preempting"] += stats.preemptions > self._before.preemptions
        seen["hitting"] += stats.kv_cache.prefix_hits > self._before.kv_cache.prefix_hits

    def clear(self) -> None:
        """Give up what is left, so that the engine can be used again."""
        for request in self.live:
            self._llm._outputs.abort(request)
        self._llm.engine.scheduler.clear_prefix_cache()

    def _check(self, shape: Mapping[str, Any], request: RequestOutput) -> None:
        exact = self.trace.engine == "deterministic"
        want = self.laboratory.oracle(exact).outputs(prompt_of(shape), params_of(shape), shape["lora"])
        for got, expected in zip(request.outputs, want, strict=True):
            seen = self.laboratory.seen
            seen[str(got.finish_reason)] += 1
            seen["tokens"] += len(got.token_ids)
            whole = got.finish_reason != "abort"
            problem = difference(got, expected, whole, exact)
            if problem == "tie":
                seen["ties"] += 1
            elif problem:
                raise Wrong(f"request {request.request_id}, answer {got.index}: {problem}")


def difference(got: CompletionOutput, want: CompletionOutput, whole: bool, exact: bool) -> str:
    """What is wrong with an answer, ``"tie"`` where rounding decided between two tokens, or nothing.

    An answer that was aborted, so is not `whole`, has the first of the oracle's tokens; where its text ends depends on
    what was held back. `exact`: bitwise.
    """
    for at, (mine, theirs) in enumerate(zip(got.token_ids, want.token_ids, strict=False)):
        first, second = (got.logprobs or [])[at], (want.logprobs or [])[at]
        near = all(abs(first[token].logprob - second[token].logprob) < TIE for token in set(first) & set(second))
        if mine != theirs:
            return "tie" if near and not exact else f"token {at} is {mine}, alone it is {theirs}"
        if (exact and first != second) or not near:
            return f"log-probabilities of token {at}: {first}, alone {second}"
    if len(got.token_ids) > len(want.token_ids):
        return f"{len(got.token_ids)} tokens, alone {len(want.token_ids)}"
    if not whole:
        return ""
    mine, theirs = ((each.text, each.token_ids, each.finish_reason, each.stop_reason) for each in (got, want))
    return "" if mine == theirs else f"{mine}, alone {theirs}"


def replay(laboratory: Laboratory, trace: Trace) -> None:
    """Run a trace. Raises `Wrong`."""
    program = Program(laboratory, Trace(trace.engine))
    try:
        for what, how in trace.actions:
            program.do(what, how)
        program.finish()
    finally:
        program.clear()


def main() -> None:
    trace = Trace.read(Path(sys.argv[1]))
    with tempfile.TemporaryDirectory() as root:
        laboratory = Laboratory(Path(root))
        replay(laboratory, trace)
        print(f"{len(trace.actions)} actions, nothing wrong: {dict(laboratory.seen)}")


if __name__ == "__main__":
    main()
