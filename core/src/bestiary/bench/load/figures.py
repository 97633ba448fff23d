"""From samples to figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from bestiary.bench.figures import Percentiles, percentiles

from .load import Run
from .sample import Sample

LIMITS = ("ttft", "tpot", "itl", "e2e")
"""What a limit of goodput may be about."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Seconds, unless a name says otherwise. Failed requests count in `errors`, and in nothing else.

    Attributes:
        seconds: from the first start to the last end. request_s, output_tok_s, total_tok_s: a second of that.
        output_tokens: of all answers; counted_by: "usage" (the server) or "pieces" (events with text).
        ttft: to the first text, from when the request was due. itl_ms: between pieces of text.
        tpot_ms: of each answer, the mean time of a token after its first. e2e: from when it was due to its end.
        goodput_s: answers a second that kept all limits; None without limits. within_limits: their share of requests.
        errors, ended_by: in words → how often. late: from when a request was due until it was sent, p99.
        cpu_us_per_token: what this generator itself computed, microseconds a token. cpu_share: of one core.
    """

    requests: int
    completed: int
    seconds: float
    request_s: float
    input_tokens: int | None
    output_tokens: int
    counted_by: str
    output_tok_s: float
    total_tok_s: float | None
    most_running: int
    ttft: Percentiles | None
    itl_ms: Percentiles | None
    tpot_ms: Percentiles | None
    e2e: Percentiles | None
    goodput_s: float | None
    within_limits: float | None
    errors: dict[str, int]
    ended_by: dict[str, int]
    late_ms: float
    cpu_us_per_token: float | None
    cpu_share: float


def figures(run: Run, limits: Mapping[str, float]) -> Figures:
    """Args: limits: a name of `LIMITS` → milliseconds."""
    samples, answers = run.samples, [each for each in run.samples if each.error is None]
    seconds = max(each.end for each in samples) - min(each.start for each in samples)
    counted = all(each.output_tokens is not None for each in answers)
    output = sum(each.tokens for each in answers)
    prompts = [each.prompt_tokens for each in answers]
    tokens_in = sum(each for each in prompts if each is not None) if None not in prompts else None
    good = [each for each in answers if keeps(each, limits)]
    late = percentiles(1e3 * (each.sent - each.start) for each in samples)
    return Figures(
        requests=len(samples),
        completed=len(answers),
        seconds=seconds,
        request_s=len(answers) / seconds,
        input_tokens=tokens_in,
        output_tokens=output,
        counted_by="usage" if counted else "pieces",
        output_tok_s=output / seconds,
        total_tok_s=None if tokens_in is None else (tokens_in + output) / seconds,
        most_running=run.most_running,
        ttft=percentiles(each.ttft for each in answers if each.ttft is not None),
        itl_ms=percentiles(1e3 * gap for each in answers for gap in gaps(each)),
        tpot_ms=percentiles(1e3 * each.tpot for each in answers if each.tpot is not None),
        e2e=percentiles(each.e2e for each in answers),
        goodput_s=len(good) / seconds if limits else None,
        within_limits=len(good) / len(samples) if limits else None,
        errors=dict(Counter(each.error for each in samples if each.error is not None)),
        ended_by=dict(Counter(str(each.finish_reason) for each in answers)),
        late_ms=0.0 if late is None else late.p99,
        cpu_us_per_token=1e6 * run.cpu / output if output else None,
        cpu_share=run.cpu / seconds,
    )


def gaps(sample: Sample) -> Sequence[float]:
    """Seconds between its pieces."""
    return [later - earlier for earlier, later in pairwise(sample.pieces)]


def keeps(sample: Sample, limits: Mapping[str, float]) -> bool:
    """Whether an answer keeps every limit; what cannot be said of it, such as the time between pieces of an answer with
    one, breaks none."""
    seen = {"ttft": sample.ttft, "tpot": sample.tpot, "itl": max(gaps(sample), default=None), "e2e": sample.e2e}
    return all((value := seen[name]) is None or 1e3 * value <= most for name, most in limits.items())
