"""`bench latency`: one request at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .figures import Latency, latency
from .subject import Subject, interleave
from .workload import Workload


@dataclass(frozen=True, slots=True)
class LatencyWork:
    """`prefill_len` tokens to the first token; then, apart, `output_len` tokens after a prompt of `input_len`."""

    prefill_len: int = 512
    input_len: int = 32
    output_len: int = 128
    repeats: int = 5


def measure_latency(
    subjects: Sequence[Subject], workload: Workload, work: LatencyWork
) -> dict[str, dict[str, Latency]]:
    """Subject → {"prefill": …, "decode": …}."""
    prefill = interleave(subjects, lambda n: [workload.prompt(work.prefill_len, n)], 1, work.repeats)
    decode = interleave(subjects, lambda n: [workload.prompt(work.input_len, n)], work.output_len, work.repeats)
    return {
        subject.name: {
            "prefill": latency(work.prefill_len, prefill[subject.name]),
            "decode": latency(work.input_len, decode[subject.name]),
        }
        for subject in subjects
    }
