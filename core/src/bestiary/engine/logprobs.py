"""Log-probabilities of the model's own distribution, before anything a request asks for changes it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from bestiary.api.outputs import Logprob, TokenLogprobs
from bestiary.nn.sending import send

from .transfer import fetch

_TOGETHER = 2**22
"""Numbers that are worked on at once: some 100 MB with what is made of them."""
_ALIGNED = 8
"""Numbers: each row begins where a device reads widely, so that its sum is the same wherever it lies."""


def logprobs_of(asked: Sequence[tuple[torch.Tensor, int, int]]) -> list[TokenLogprobs]:
    """Of rows of raw logits ``[vocabulary]``: each one's token's log-probability, and the so many likeliest. Each is
    computed by itself; the device is waited for once."""
    if not asked:
        return []
    return [_read(token, *each) for (_, token, _), each in zip(asked, _in_threes(asked), strict=True)]


def _in_threes(asked: Sequence[tuple[torch.Tensor, int, int]]) -> Iterator[list[list[float]]]:
    """For each: the token's log-probability and how many are larger; those of the likeliest ones; their ids."""
    vectors: list[torch.Tensor] = []
    for logits, token, count in asked:
        logprobs = torch.log_softmax(logits.float(), dim=-1)
        own = logprobs[token]
        top = torch.topk(logprobs, min(count, logprobs.shape[-1]))
        vectors += [torch.stack((own.double(), (logprobs > own).sum().double())), top.values, top.indices]
    found = fetch(*vectors)
    for at in range(0, len(found), 3):
        yield found[at : at + 3]


def likeliest(logits: torch.Tensor, tokens: torch.Tensor, count: int) -> torch.Tensor:
    """All that `read_likeliest` needs of raw logits ``[rows, vocabulary]``, without a wait: fp64
    ``[rows, 2 + 2 * min(count, vocabulary)]``.

    A row is its token's log-probability, how many are larger, the `count` largest, and their ids, of equal ones the
    lower first. It does not depend on the other rows.

    Args:
        tokens: int64 ``[rows]``.
    """
    together = max(1, _TOGETHER // logits.shape[-1])
    parts = [slice(at, at + together) for at in range(0, len(logits), together)]
    return torch.cat([_likeliest(logits[part], tokens[part], count) for part in parts])


def _likeliest(logits: torch.Tensor, tokens: torch.Tensor, count: int) -> torch.Tensor:
    width = logits.shape[-1]
    padded = F.pad(logits.float(), (0, -width % _ALIGNED), value=-torch.inf)
    logprobs = torch.log_softmax(padded, dim=-1)
    own = logprobs.gather(1, tokens.unsqueeze(1))
    larger = (logprobs > own).sum(dim=1, keepdim=True)
    bits = (padded + 0.0).view(torch.int32)  # -0 is 0
    order = bits ^ (bits >> 31 & 0x7FFFFFFF)  # integers in the order of the numbers
    ids = torch.arange(padded.shape[1], device=padded.device)
    top = torch.topk((order.long() << 32) - ids, min(count, width)).indices
    return torch.cat((own.double(), larger.double(), logprobs.gather(1, top).double(), top.double()), dim=1)


def read_likeliest(token: int, row: Sequence[float], count: int) -> TokenLogprobs:
    """What a row of `likeliest` says of `token`, with `count` of the likeliest or as many as there are."""
    most = (len(row) - 2) // 2
    return _read(token, row[:2], row[2 : 2 + min(count, most)], row[2 + most :])


def prompt_logprobs(logits: torch.Tensor, tokens: Sequence[int], count: int) -> list[TokenLogprobs]:
    """Of raw logits ``[rows, vocabulary]``: each row's token's log-probability, and the `count` likeliest."""
    if logits.device.type == "cpu":
        return logprobs_of([(row, token, count) for row, token in zip(logits, tokens, strict=True)])
    if not tokens:
        return []
    rows = likeliest(logits, send(np.array(tokens, np.int64), logits.device), count).tolist()
    return [read_likeliest(token, row, count) for token, row in zip(tokens, rows, strict=True)]


def _read(token: int, own: Sequence[float], values: Sequence[float], ids: Sequence[float]) -> TokenLogprobs:
    found = {token: Logprob(own[0], int(own[1]) + 1)}
    for rank, (value, each) in enumerate(zip(values, itertools.islice(ids, len(values)), strict=True), 1):
        found.setdefault(int(each), Logprob(value, rank))
    return found
