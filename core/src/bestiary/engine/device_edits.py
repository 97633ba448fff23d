"""What requests change about their logits before a draw, where the logits are: all rows of a step at once.

The order is the sampler's: what the grammar allows, allowed and banned ids, bias, penalties.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from .request_state import RequestState
from .transfer import send_together

Ids = NDArray[np.int64]
Values = NDArray[np.float32]


def edited(
    logits: torch.Tensor, states: Sequence[RequestState], rows: Sequence[int], grammars: Sequence[bytes | None]
) -> torch.Tensor:
    """The logits of `rows` as each one's request and grammar want them: fp32 ``[len(rows), vocabulary]``.

    Numbers go to the device in one copy that nobody waits for.
    """
    width, asked = logits.shape[-1], list(zip((states[row] for row in rows), grammars, strict=True))
    sent = send_together(
        {
            "rows": np.array(rows, np.int64),
            **_masks("bits", [_allowed(state, bits, width) for state, bits in asked]),
            **_flat("banned", width, ((_banned(state, bits), None) for state, bits in asked)),
            **_flat("bias", width, (_bias(state) for state, _ in asked)),
            **_flat("seen", width, (_repetition(state) for state, _ in asked)),
            **_flat("counted", width, (_frequency(state) for state, _ in asked)),
        },
        logits.device,
    )
    made = logits.index_select(0, sent["rows"]).float()
    if "bits" in sent:
        bits = torch.arange(8, dtype=torch.uint8, device=made.device)
        allowed = (sent["bits"].unsqueeze(-1) >> bits & 1).flatten(1)[:, :width]
        made = made.masked_fill_(allowed == 0, -math.inf)
    flat = made.view(-1)
    if "banned" in sent:
        flat.index_fill_(0, sent["banned"], -math.inf)
    if "bias" in sent:
        flat.index_add_(0, sent["bias"], sent["bias_values"])
    if "seen" in sent:
        before, penalty = flat[sent["seen"]], sent["seen_values"]
        flat.index_put_((sent["seen"],), torch.where(before > 0, before / penalty, before * penalty))
    if "counted" in sent:
        flat.index_add_(0, sent["counted"], -sent["counted_values"])
    return made


def _masks(name: str, masks: Sequence[NDArray[np.uint8] | None]) -> dict[str, np.ndarray]:
    """Masks under a name; nothing where no row has one."""
    sizes = [len(each) for each in masks if each is not None]
    if not sizes:
        return {}
    everything = np.full(sizes[0], 0xFF, np.uint8)
    return {name: np.stack([everything if each is None else each for each in masks])}


def _flat(name: str, width: int, edits: Iterable[tuple[Ids, Values | None]]) -> dict[str, np.ndarray]:
    """Places in all rows, one row after the other, under a name, and their values under ``name_values``."""
    places, values = [], []
    for row, (ids, given) in enumerate(edits):
        if len(ids):
            places.append(ids + row * width)
            values += [] if given is None else [given]
    found = {name: np.concatenate(places)} if places else {}
    return found | ({f"{name}_values": np.concatenate(values)} if values else {})


def _allowed(state: RequestState, grammar: bytes | None, width: int) -> NDArray[np.uint8] | None:
    """A bit for each id that may be drawn, the lowest first; None where every one may."""
    ids, size = state.sampling.allowed_token_ids, -(-width // 8)
    if grammar is None and ids is None:
        return None
    found = np.full(size, 0xFF, np.uint8)
    if grammar is not None:
        given = np.frombuffer(grammar, np.uint8, min(size, len(grammar)))
        found[: len(given)], found[len(given) :] = given, 0
    if ids is not None:
        listed = np.zeros(8 * size, np.uint8)
        listed[np.array(ids, np.int64)] = 1
        found &= np.packbits(listed, bitorder="little")
    return found


def _banned(state: RequestState, grammar: bytes | None) -> Ids:
    p = state.sampling
    ids = [*(p.bad_token_ids or ())]
    if state.banned_until_min and state.num_outputs < p.min_tokens:
        ids += state.banned_until_min
    if grammar is not None and p.ignore_eos:
        ids += state.eos_token_ids
    return np.array(ids, np.int64)


def _bias(state: RequestState) -> tuple[Ids, Values]:
    bias = state.sampling.logit_bias or {}
    return np.fromiter(bias, np.int64, len(bias)), np.fromiter(bias.values(), np.float32, len(bias))


def _repetition(state: RequestState) -> tuple[Ids, Values]:
    penalty = state.sampling.repetition_penalty
    ids = state.seen_ids() if penalty != 1.0 else np.empty(0, np.int64)
    return ids, np.full(len(ids), penalty, np.float32)


def _frequency(state: RequestState) -> tuple[Ids, Values]:
    p, counts = state.sampling, state.output_counts
    if not (p.presence_penalty or p.frequency_penalty):
        return np.empty(0, np.int64), np.empty(0, np.float32)
    often = np.fromiter(counts.values(), np.float32, len(counts))
    penalty = np.float32(p.presence_penalty) + np.float32(p.frequency_penalty) * often
    return np.fromiter(counts, np.int64, len(counts)), penalty
