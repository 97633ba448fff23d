"""What every contestant is given: the same prompts, a round's own, and how many tokens to answer with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from bestiary.bench.workload import Workload

Part: TypeAlias = Literal["alone", "together"]
"""One request at a time; many at once. Each is a process of its own, since runtimes keep other caches for each."""
PARTS: tuple[Part, ...] = ("alone", "together")

Job: TypeAlias = dict[str, Any]
"""A part of a round, as JSON: what `worker.py` reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeersWork:
    """`prefill_len` tokens to the first token; `output_len` tokens after `input_len`; and of each number in `requests`
    so many at once, of `shortest` to `longest` tokens and `batch_output_len` new ones."""

    threads: int
    rounds: int = 5
    seed: int = 0
    prefill_len: int = 512
    input_len: int = 32
    output_len: int = 128
    requests: tuple[int, ...] = (16, 32)
    shortest: int = 64
    longest: int = 256
    batch_output_len: int = 64

    @property
    def parts(self) -> tuple[Part, ...]:
        return PARTS if self.requests else PARTS[:1]

    def context(self, part: Part) -> int:
        """Tokens that one request holds at most."""
        if part == "alone":
            return max(self.prefill_len + 1, self.input_len + self.output_len)
        return self.longest + self.batch_output_len

    def batches(self, workload: Workload) -> list[list[list[int]]]:
        """The prompts of each number of requests; the same in every round."""
        return [workload.requests(count, self.shortest, self.longest) for count in self.requests]

    def job(self, part: Part, vocab_size: int, number: int) -> Job:
        """Of round `number`, from 1. What is listed first warms up, and differs from what is measured."""
        workload = Workload(vocab_size, self.seed)
        shared = {
            "part": part,
            "threads": self.threads,
            "context": self.context(part),
            "first": workload.prompt(self.input_len, 0),
        }
        if part == "together":
            return shared | {
                "most": max(self.requests),
                "batches": self.batches(workload),
                "output_len": self.batch_output_len,
            }
        return shared | {
            "most": 1,
            "prefill": [workload.prompt(self.prefill_len, each) for each in (0, number)],
            "decode": workload.prompt(self.input_len, number),
            "output_len": self.output_len,
        }
