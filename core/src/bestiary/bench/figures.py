"""From times to figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median, quantiles
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .subject import Times


@dataclass(frozen=True, slots=True)
class Percentiles:
    p50: float
    p90: float
    p99: float


def percentiles(values: Iterable[float]) -> Percentiles | None:
    """By linear interpolation, extremes included (numpy's default); None of nothing."""
    found = list(values)
    if not found:
        return None
    cuts = quantiles(found, n=100, method="inclusive") if len(found) > 1 else found * 99
    return Percentiles(cuts[49], cuts[89], cuts[98])


@dataclass(frozen=True, slots=True)
class Latency:
    """One request at a time. Seconds, and tokens a second; medians over rounds.

    Attributes:
        ttft: from the prompt to its first token. prefill_tok_s: prompt tokens over that.
        decode_tok_s: tokens after the first over the time they took; None of one-token answers.
        itl_ms: milliseconds between tokens, over all rounds.
        rounds: `decode_tok_s`, or `prefill_tok_s` of one-token answers, of each round.
    """

    input_len: int
    output_len: int
    ttft: float
    prefill_tok_s: float
    decode_tok_s: float | None
    itl_ms: Percentiles | None
    rounds: list[float]


def latency(input_len: int, rounds: Sequence[Sequence[Times]]) -> Latency:
    answers = [times[0] for times in rounds]
    output_len = len(answers[0])
    firsts = [times[0] for times in answers]
    decode = [(output_len - 1) / (times[-1] - times[0]) for times in answers if output_len > 1]
    return Latency(
        input_len=input_len,
        output_len=output_len,
        ttft=median(firsts),
        prefill_tok_s=input_len / median(firsts),
        decode_tok_s=median(decode) if decode else None,
        itl_ms=_between(answers),
        rounds=decode or [input_len / first for first in firsts],
    )


@dataclass(frozen=True, slots=True)
class Throughput:
    """Requests that were submitted together. Tokens a second over the whole, prompts included in its time.

    Attributes:
        seconds, output_tok_s, total_tok_s: medians over rounds; total counts prompt tokens too.
        ttft: seconds from submission to each request's first token. itl_ms: between tokens; both over all rounds.
        rounds: `output_tok_s` of each round.
    """

    requests: int
    input_tokens: int
    output_tokens: int
    seconds: float
    output_tok_s: float
    total_tok_s: float
    ttft: Percentiles | None
    itl_ms: Percentiles | None
    rounds: list[float]


def throughput(input_tokens: int, rounds: Sequence[Sequence[Times]]) -> Throughput:
    output_tokens = sum(len(times) for times in rounds[0])
    lasted = [max(times[-1] for times in answers) for answers in rounds]
    seconds = median(lasted)
    return Throughput(
        requests=len(rounds[0]),
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        seconds=seconds,
        output_tok_s=output_tokens / seconds,
        total_tok_s=(input_tokens + output_tokens) / seconds,
        ttft=percentiles(times[0] for answers in rounds for times in answers),
        itl_ms=_between(times for answers in rounds for times in answers),
        rounds=[output_tokens / each for each in lasted],
    )


def _between(answers: Iterable[Times]) -> Percentiles | None:
    return percentiles(1e3 * (later - earlier) for times in answers for earlier, later in pairwise(times))
