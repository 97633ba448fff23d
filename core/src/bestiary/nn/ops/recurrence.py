"""What recurrences along the sequences of a flat batch share: who computes what, and chunks.

All compute in fp32 from fp32 states. A recurrence is a function of one token, ``(state, *token) → (out, state)``, for
``[seqs, …]`` of each; and, unless only that is wanted, one of a whole piece of a sequence, ``[tokens, …]`` of each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ParamSpec, TypeAlias, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .registry import Implementation, Target

if TYPE_CHECKING:
    from bestiary.nn.attention.metadata import AttentionMetadata

P = ParamSpec("P")
R = TypeVar("R")

CHUNK = 64
Scanned: TypeAlias = tuple[Tensor, Tensor]
Step: TypeAlias = Callable[..., Scanned]


def by_sequence(step: Step, piece: Step, state: Tensor, metadata: AttentionMetadata, *flat: Tensor) -> Scanned:
    """`step` over the leading one-token sequences at once; `piece` over each of the others."""
    flat = tuple(each.float() for each in flat)
    ones = metadata.num_decodes
    done = [step(state[:ones], *(each[:ones] for each in flat))] if ones else []
    at = ones
    for seq, length in enumerate(metadata.query_lens_host[ones:], ones):
        out, after = piece(state[seq], *(each[at : at + length] for each in flat))
        done.append((out, after.unsqueeze(0)))
        at += length
    if len(done) == 1:
        return done[0]
    outs, states = zip(*done, strict=True)
    return torch.cat(outs), torch.cat(states)


def by_token(step: Step, state: Tensor, metadata: AttentionMetadata, *flat: Tensor) -> Scanned:
    """`step` over every token by itself, so that its bits depend on what came before it in its sequence alone."""
    flat = tuple(each.float() for each in flat)
    outs, states, at = [], [], 0
    for seq, length in enumerate(metadata.query_lens_host):
        after = state[seq : seq + 1].clone()
        for token in range(at, at + length):
            out, after = step(after, *(each[token : token + 1].clone() for each in flat))
            outs.append(out)
        states.append(after)
        at += length
    return torch.cat(outs), torch.cat(states)


def _only_deterministic(target: Target) -> str | None:
    return None if target.deterministic else "it is slow, and meant for deterministic mode"


def offered_by_token(function: Callable[P, R]) -> Implementation[P, R]:
    """The version of an op that goes token by token, chosen where bits may depend on nothing else."""
    return Implementation("by_token", function, _only_deterministic, priority=20)


def in_chunks(groups: int, *flat: Tensor, size: int = CHUNK) -> tuple[Tensor, ...]:
    """``[tokens, heads, d]`` as ``[chunks, groups, heads of a group, up to size, d]``, zeros after the last token."""
    tokens = flat[0].shape[0]
    size = min(size, tokens)
    made = []
    for each in flat:
        heads, width = each.shape[1:]
        padded = F.pad(each, (0, 0, 0, 0, 0, -tokens % size)).view(-1, size, groups, heads // groups, width)
        made.append(padded.permute(0, 2, 3, 1, 4).contiguous())
    return tuple(made)


def flattened(chunks: Tensor, tokens: int) -> Tensor:
    """What `in_chunks` did, undone."""
    return chunks.flatten(1, 2).transpose(1, 2).flatten(0, 1)[:tokens]


def left_between(total: Tensor) -> Tensor:
    """``exp(total_i − total_j)`` for ``i ≥ j``, otherwise 0: what is left at i of what came at j."""
    apart = total - total.transpose(-1, -2)
    later = torch.ones_like(apart, dtype=torch.bool).triu_(1)
    return apart.masked_fill_(later, -torch.inf).exp_()
