"""Ops on logits."""

from __future__ import annotations

import torch
from torch import Tensor

from .registry import op

_WORD, _SIGN = 0xFFFFFFFF, 0x80000000


@op
def best_tokens(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The largest logit of each row ``[rows, vocabulary]`` and its id (int64); NaN counts as the largest."""
    peaks, ids = logits.max(-1)
    return peaks, ids


@op
def draw_tokens(
    logits: Tensor, seeds: Tensor, positions: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor
) -> Tensor:
    """One id a row of logits ``[rows, vocabulary]``: int64 ``[rows]``, -1 where a row has no finite maximum.

    `seeds` and `positions` int64, `top_k` int32 (0 for all), the others fp32, all ``[rows]``. A row's id is a function
    of its own values alone. With x = logit / temperature, the id of the largest ``x - log(E)`` of those kept, E being
    exponential (the Gumbel-max trick); the largest logit where the temperature is 0. The lowest id wins a tie.

    Kept are x ≥ max + log(min_p); of all, those no smaller than the k-th; and of what these two leave, those before
    which less than `top_p` of the probability lies. Equal logits are kept or dropped together, so that more than
    `top_k` can be kept.
    """
    greedy = temperature == 0
    x = logits.float() / torch.where(greedy, 1.0, temperature).unsqueeze(1)
    x = torch.where(x == 0, 0.0, x)
    peak = x.amax(1, keepdim=True)
    keys = _ordered(x)
    kept = keys >= _threshold(torch.ones_like(x), keys, torch.where(greedy, 0, top_k).float())
    kept &= x >= peak + torch.log(min_p).unsqueeze(1)
    mass = torch.where(kept, torch.exp(x - peak), 0.0)
    wanted = torch.where(greedy | (top_p >= 1), 0.0, top_p * mass.sum(1))
    kept &= keys >= _threshold(mass, keys, wanted)
    noise = torch.log(_exponential(seeds, positions, logits.shape[1]))
    scores = torch.where(greedy.unsqueeze(1), x, x - noise).masked_fill(~kept, -torch.inf)
    return torch.where(torch.isfinite(peak.squeeze(1)), scores.argmax(1), -1)


@op
def draw_from_part(
    logits: Tensor, seeds: Tensor, positions: Tensor, temperature: Tensor, first: int
) -> tuple[Tensor, Tensor]:
    """Of a part of the vocabulary, the columns of ``[rows, columns]`` being the ids from `first` on: each row's largest
    score, fp32, and its id, int64. The larger of two parts' scores is that of both together, and the id with the
    largest of all is what `draw_tokens` draws where nothing is truncated.

    A score is ``x - log(E)``, or x where the temperature is 0; NaN for a row that has NaN or +Inf.
    """
    greedy = (temperature == 0).unsqueeze(1)
    x = logits.float() / torch.where(greedy, 1.0, temperature.unsqueeze(1))
    noise = torch.log(_exponential(seeds, positions, logits.shape[1], first))
    scores = torch.where(greedy, x, x - noise)
    best, at = torch.where((x == torch.inf) | x.isnan(), torch.nan, scores).max(1)
    return best, at + first


def _ordered(x: Tensor) -> Tensor:
    """fp32 numbers as int64 in [0, 2³²) of the same order."""
    bits = x.contiguous().view(torch.int32).long() & _WORD
    return torch.where(bits < _SIGN, bits | _SIGN, ~bits & _WORD)


def _threshold(weights: Tensor, keys: Tensor, wanted: Tensor) -> Tensor:
    """For each row the largest key at which the weights of keys no smaller sum to `wanted`; 0 where that is ≤ 0."""
    found = torch.zeros(len(keys), 1, dtype=torch.int64, device=keys.device)
    for bit in range(31, -1, -1):
        higher = found | 1 << bit
        enough = torch.where(keys >= higher, weights, 0.0).sum(1, keepdim=True) >= wanted.unsqueeze(1)
        found = torch.where(enough & (wanted > 0).unsqueeze(1), higher, found)
    return found


def _exponential(seeds: Tensor, positions: Tensor, width: int, first: int = 0) -> Tensor:
    """Exponential numbers fp32 ``[rows, width]`` of 32 random bits each, exact where they are small, of the ids from
    `first` on."""
    ids = torch.arange(first, first + width, device=seeds.device).unsqueeze(0)
    bits = philox(seeds.unsqueeze(1), ids, positions.unsqueeze(1))
    uniform = ((bits.float() + 0.5) * 2.0**-32).clamp_max(1 - 2.0**-24)
    series = uniform * (1 + uniform * (0.5 + uniform * (1 / 3)))
    return torch.where(uniform < 2.0**-8, series, -torch.log(1 - uniform))


def philox(seed: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Word 0 of Philox4x32-10 (Salmon et al., Parallel random numbers, 2011), int64 in [0, 2³²).

    The key is `seed`, int64; the counter `first`, and `second`, int64, in two words.
    """
    key0, key1 = seed & _WORD, seed >> 32 & _WORD
    zero = torch.zeros_like(first + second)
    c0, c1, c2, c3 = first & _WORD, second & _WORD, second >> 32 & _WORD, zero
    for _ in range(10):
        high0, low0 = _multiplied(0xD2511F53, c0)
        high1, low1 = _multiplied(0xCD9E8D57, c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ key0, low1, high0 ^ c3 ^ key1, low0
        key0, key1 = key0 + 0x9E3779B9 & _WORD, key1 + 0xBB67AE85 & _WORD
    return c0


def _multiplied(factor: int, word: Tensor) -> tuple[Tensor, Tensor]:
    """The upper and the lower word of a product of two, by halves: it does not fit an int64."""
    low, high = factor * (word & 0xFFFF), factor * (word >> 16)
    middle = (low >> 16) + high
    return middle >> 16, (middle & 0xFFFF) << 16 | low & 0xFFFF
