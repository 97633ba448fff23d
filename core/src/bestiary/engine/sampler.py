"""From logits to tokens.

Log-probabilities are those of the model's own distribution, before anything a request asks for changes it. A draw is
a function of the request's seed and the token's position, so it does not depend on the batch: one uniform number
selects a token from the cumulative distribution. On a GPU, `device_sampler.py` does the same for all rows together.

Order: what the grammar allows, allowed and banned ids, bias, penalties, temperature, min-p, top-k, top-p.

An answer with a grammar ends where that allows nothing but the end. The token that says so is drawn where it can be;
where `ignore_eos`, `min_tokens` or banned ids forbid it, the answer ends without one.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from . import device_draws
from .logprobs import logprobs_of
from .plan import SampledToken
from .request_state import RequestState
from .transfer import fetch

_CANDIDATES = 1024
NUMERICAL = SampledToken(token_id=-1, error="numerical")
_NOTHING_LEFT = SampledToken(-1, None, "NOTHING_TO_DRAW: the parameters forbid all that the answer's form allows")
_END = SampledToken(-1, instead="end")


def sample(
    logits: torch.Tensor,
    states: Sequence[RequestState],
    grammars: Sequence[bytes | SampledToken | None] | None = None,
    best: Sequence[torch.Tensor] | None = None,
) -> list[SampledToken]:
    """Draw one token from each row of logits ``[len(states), vocabulary]``.

    A row without a finite maximum (NaN, +Inf, all -Inf) yields an error for that row alone.

    Args:
        grammars: for each row, the bits of the ids that its grammar allows (`StructuredOutputGrammar`), or what is
            yielded instead of a draw; None where it has no grammar.
        best: each row's largest logit and its id, where they are known already.
    """
    peaks, ids = fetch(*(best or logits.max(dim=-1)))
    allowed = grammars or [None] * len(states)
    drawn: list[SampledToken] = []
    for row, (state, peak, grammar) in enumerate(zip(states, peaks, allowed, strict=True)):
        if not math.isfinite(peak):
            drawn.append(NUMERICAL)
        elif isinstance(grammar, SampledToken):
            drawn.append(grammar)
        else:
            known = grammar is None and state.sampling.greedy and not reshapes(state)
            token = int(ids[row]) if known else _choose(_as_allowed(logits[row], state, grammar), state)
            drawn.append(SampledToken(token) if token >= 0 else no_token(state, grammar, logits.shape[-1]))
    return _with_logprobs(drawn, logits, states)


def takes_the_best(state: RequestState, device_draws_it: bool = False) -> bool:
    """Whether the largest of a row's logits and its id are all that its token needs; where the device draws, the
    largest of its scores (`device_draws.draw_parts`)."""
    if reshapes(state) or wants_logprobs(state) or state.sampling.structured_outputs is not None:
        return False
    return state.sampling.greedy or (device_draws_it and device_draws.draws_from_all(state))


def needs_history(state: RequestState) -> bool:
    """Whether what a row's token is drawn from depends on the tokens before it by more than the model."""
    p = state.sampling
    early = state.banned_until_min and state.num_outputs < p.min_tokens
    penalized = p.repetition_penalty != 1.0 or p.presence_penalty or p.frequency_penalty
    return bool(p.structured_outputs is not None or penalized or early)


def sample_best(peaks: torch.Tensor, ids: torch.Tensor) -> list[SampledToken]:
    """Tokens of rows that take the best, as `sample` would draw them; the peaks are their logits."""
    drawn = zip(*fetch(peaks, ids), strict=True)
    return [SampledToken(int(token)) if math.isfinite(peak) else NUMERICAL for peak, token in drawn]


def _with_logprobs(
    drawn: list[SampledToken], logits: torch.Tensor, states: Sequence[RequestState]
) -> list[SampledToken]:
    """The same tokens, with log-probabilities where these were asked for."""
    rows = [row for row, token in enumerate(drawn) if token.token_id >= 0 and wants_logprobs(states[row])]
    asked = [(logits[row], drawn[row].token_id, states[row].sampling.logprobs or 0) for row in rows]
    for row, found in zip(rows, logprobs_of(asked), strict=True):
        drawn[row] = drawn[row]._replace(logprobs=found)
    return drawn


def wants_logprobs(state: RequestState) -> bool:
    return state.sampling.logprobs is not None


def _as_allowed(logits: torch.Tensor, state: RequestState, grammar: bytes | None) -> torch.Tensor:
    """One row with what its grammar allows."""
    if grammar is None:
        return logits
    row = logits.float().masked_fill(~torch.from_numpy(_bits(grammar, logits.shape[-1])), -math.inf)
    if state.sampling.ignore_eos:
        row[_ids(state.eos_token_ids, row)] = -math.inf
    return row


def no_token(state: RequestState, grammar: bytes | None, width: int) -> SampledToken:
    """What stands in for a token where there is none to draw."""
    if grammar is None:
        return NUMERICAL
    allowed = _bits(grammar, width)
    allowed[[*state.eos_token_ids]] = False
    return _NOTHING_LEFT if allowed.any() else _END


def _bits(grammar: bytes, width: int) -> NDArray[np.bool_]:
    return np.unpackbits(np.frombuffer(grammar, np.uint8), count=width, bitorder="little").astype(bool)


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) with 53 random bits, a pure function of its arguments (BLAKE2b)."""
    key = seed.to_bytes(8, "little") + position.to_bytes(8, "little")
    return (int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 11) * 2.0**-53


def reshapes(state: RequestState) -> bool:
    """Whether anything but temperature and truncation changes this row."""
    p = state.sampling
    return bool(
        p.logit_bias
        or p.bad_token_ids
        or p.allowed_token_ids is not None
        or p.repetition_penalty != 1.0
        or p.presence_penalty
        or p.frequency_penalty
        or (state.banned_until_min and state.num_outputs < p.min_tokens)
    )


def _choose(logits: torch.Tensor, state: RequestState) -> int:
    row = _reshaped(logits.float(), state) if reshapes(state) else logits.float()
    if state.sampling.greedy:
        return _finite_argmax(row)
    return _draw(row, state)


def _finite_argmax(row: torch.Tensor) -> int:
    peak, token = row.max(dim=-1)
    return int(token) if math.isfinite(float(peak)) else -1


def _reshaped(row: torch.Tensor, state: RequestState) -> torch.Tensor:
    p = state.sampling
    row = row.clone()
    if p.allowed_token_ids is not None:
        banned = torch.ones_like(row, dtype=torch.bool)
        banned[_ids(p.allowed_token_ids, row)] = False
        row[banned] = -math.inf
    if p.bad_token_ids:
        row[_ids(p.bad_token_ids, row)] = -math.inf
    if state.banned_until_min and state.num_outputs < p.min_tokens:
        row[_ids(state.banned_until_min, row)] = -math.inf
    if p.logit_bias:
        at = _ids(list(p.logit_bias), row)
        row[at] += torch.tensor(list(p.logit_bias.values()), device=row.device)
    if p.repetition_penalty != 1.0:
        at = torch.from_numpy(state.seen_ids())
        seen = row[at]
        row[at] = torch.where(seen > 0, seen / p.repetition_penalty, seen * p.repetition_penalty)
    if state.output_counts and (p.presence_penalty or p.frequency_penalty):
        at = _ids(list(state.output_counts), row)
        counts = torch.tensor(list(state.output_counts.values()), dtype=row.dtype, device=row.device)
        row[at] -= p.presence_penalty + p.frequency_penalty * counts
    return row


def _ids(ids: Sequence[int], row: torch.Tensor) -> torch.Tensor:
    return torch.tensor(ids, dtype=torch.long, device=row.device)


def _draw(row: torch.Tensor, state: RequestState) -> int:
    """Select by one uniform number from the truncated distribution; -1 where nothing can be drawn."""
    p = state.sampling
    row = (row / p.temperature).double()
    if not math.isfinite(float(row.max())):
        return -1
    u = uniform(state.seed, len(state.tokens))
    if p.top_k == 0 and p.top_p == 1.0 and p.min_p == 0.0:
        return _select(torch.softmax(row, dim=-1), u)
    values, ids = _candidates(row, p.top_k, p.top_p, p.min_p)
    return int(ids[_select(torch.softmax(values, dim=-1), u)])


def _select(probs: torch.Tensor, u: float) -> int:
    cumulative = probs.cumsum(dim=-1)
    wanted = torch.tensor([u * float(cumulative[-1])], device=probs.device, dtype=probs.dtype)
    at = torch.searchsorted(cumulative, wanted, right=True)
    last = int(torch.nonzero(probs)[-1])
    return min(int(at), last)


def _candidates(row: torch.Tensor, top_k: int, top_p: float, min_p: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The kept logits, largest first, with their ids. All three truncations keep a prefix of the sorted row."""
    width = row.shape[-1]
    count = min(width, top_k or _CANDIDATES)
    while True:
        values, ids = torch.topk(row, count)
        kept = _prefix(row, values, top_k, top_p, min_p)
        if kept < count or count in (width, top_k):
            return values[:kept], ids[:kept]
        count = width


def _prefix(row: torch.Tensor, values: torch.Tensor, top_k: int, top_p: float, min_p: float) -> int:
    """How many of the sorted `values` survive; ``len(values)`` where more than those might."""
    kept = len(values)
    if min_p > 0.0:
        kept = int((values >= values[0] + math.log(min_p)).sum())
        if kept == len(values) and len(values) not in (row.shape[-1], top_k):
            return kept
    if top_p < 1.0:
        everything = values[:kept] if top_k or min_p > 0.0 else row
        probs = torch.exp(values[:kept] - torch.logsumexp(everything, dim=-1))
        before = probs.cumsum(dim=-1) - probs
        kept = max(1, int((before < top_p).sum()))
    return kept
