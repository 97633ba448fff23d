"""`bench throughput`: many requests, submitted together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .figures import Throughput, throughput
from .subject import Subject, interleave
from .workload import Workload


@dataclass(frozen=True, slots=True)
class ThroughputWork:
    """`requests` prompts of `shortest` to `longest` tokens, `output_len` new tokens each."""

    requests: int = 16
    shortest: int = 64
    longest: int = 256
    output_len: int = 64
    repeats: int = 3

    def prompts(self, workload: Workload) -> list[list[int]]:
        return workload.requests(self.requests, self.shortest, self.longest)


def measure_throughput(subjects: Sequence[Subject], workload: Workload, work: ThroughputWork) -> dict[str, Throughput]:
    """Subject → its figures. The prompts are the same in every round: nothing may keep them (no prefix cache)."""
    prompts = work.prompts(workload)
    rounds = interleave(subjects, lambda _: prompts, work.output_len, work.repeats)
    return {name: throughput(sum(map(len, prompts)), found) for name, found in rounds.items()}
