"""From a plan to the tensors of one forward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch

from bestiary.nn.attention.metadata import AttentionMetadata
from bestiary.nn.lora.rows import SlotRows
from bestiary.nn.pooling import PoolingItem, PoolingMetadata

from .plan import ScheduledItem, StepPlan
from .request_state import RequestState
from .transfer import send_together
from .unknown_tokens import fill_in, is_unknown, tokens_of

_NO_SLOTS: Mapping[str, int] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """One step's input; owned by the runner.

    Attributes:
        input_ids, positions: int64 ``[tokens]``.
        logits_rows: int64 ``[rows]``, the token rows whose logits are wanted; None where they are all rows, in order.
        sampled: the requests that draw a token, with the row of `logits_rows` each draws from.
        pooled, pooling: the requests that get a vector, in order, and how their prompts lie in the batch; None in an
            engine that generates.
        prompt_rows: for requests that want prompt log-probabilities: (request, rows of `logits_rows`, first position).
        lora, logits_lora: the adapter slots of the tokens, and of the rows of `logits_rows`, or of prompts that end
            where they are pooled; None where nobody has one.
    """

    input_ids: torch.Tensor
    positions: torch.Tensor
    attention: AttentionMetadata
    logits_rows: torch.Tensor | None
    sampled: tuple[tuple[RequestState, int], ...]
    prompt_rows: tuple[tuple[RequestState, range, int], ...]
    lora: SlotRows | None = None
    logits_lora: SlotRows | None = None
    pooled: tuple[RequestState, ...] = ()
    pooling: PoolingMetadata | None = None


def make_batch(
    plan: StepPlan,
    states: Mapping[str, RequestState],
    block_size: int,
    device: torch.device,
    lora_slots: Mapping[str, int] = _NO_SLOTS,
) -> ForwardBatch:
    """Lay the plan's items out flat, single-token items first. `lora_slots`: adapter id → slot."""
    items = sorted(plan.items, key=lambda item: item.count > 1)
    ids: list[int] = []
    unknown = []
    for item in items:
        state = states[item.request_id]
        ids += tokens_of(state, item.start, item.count)
        if is_unknown(state, item.start, item.count):
            unknown.append((len(ids) - 1, state))
    counts = np.fromiter((item.count for item in items), np.int64, len(items))
    starts = np.fromiter((item.start for item in items), np.int64, len(items))
    ends = np.cumsum(counts)
    within = np.arange(len(ids)) - np.repeat(ends - counts, counts)
    positions = np.repeat(starts, counts) + within
    tables = _block_tables(items)
    blocks = tables[np.repeat(np.arange(len(items)), counts), positions // block_size]
    slots = blocks.astype(np.int64) * block_size + positions % block_size
    rows, sampled, prompt_rows = _wanted_logits(items, states, ends)
    pooling = _pooling(items, states, ends)

    lora, logits_lora = _adapters(items, states, lora_slots, counts, rows, device)
    numbers = {
        "input_ids": np.array(ids, np.int64),
        "positions": positions,
        "slot_mapping": slots,
        "query_start": np.concatenate(([0], ends)).astype(np.int32),
        "seq_lens": (starts + counts).astype(np.int32),
        "block_tables": tables,
        "prompt_lens": np.fromiter((states[item.request_id].prompt_len for item in items), np.int64, len(items)),
        "logits_rows": np.array(rows, np.int64),
        **_state_rows(items),
    }
    sent = send_together(numbers, device)
    attention = AttentionMetadata(
        query_start=sent["query_start"],
        seq_lens=sent["seq_lens"],
        block_tables=sent["block_tables"],
        slot_mapping=sent["slot_mapping"],
        query_lens_host=tuple(counts.tolist()),
        seq_lens_host=tuple((starts + counts).tolist()),
        max_query_len=int(counts.max()),
        max_seq_len=int((starts + counts).max()),
        num_decodes=int((counts == 1).sum()),
        block_size=block_size,
        prompt_lens=sent["prompt_lens"],
        state_read=sent.get("state_read"),
        state_write=sent.get("state_write"),
    )
    fill_in(sent["input_ids"], unknown)
    return ForwardBatch(
        input_ids=sent["input_ids"],
        positions=sent["positions"],
        attention=attention,
        logits_rows=None if len(rows) == len(ids) else sent["logits_rows"],
        sampled=sampled,
        prompt_rows=prompt_rows,
        lora=lora,
        logits_lora=logits_lora,
        pooled=tuple([states[item.request_id] for item in items if item.samples]) if pooling else (),
        pooling=pooling,
    )


def _adapters(
    items: Sequence[ScheduledItem],
    states: Mapping[str, RequestState],
    lora_slots: Mapping[str, int],
    counts: np.ndarray,
    rows: Sequence[int],
    device: torch.device,
) -> tuple[SlotRows | None, SlotRows | None]:
    """The adapter slots of all tokens, and of the rows whose logits are wanted."""
    ids = [states[item.request_id].lora_id for item in items]
    if not any(ids):
        return None, None
    slots = np.repeat([-1 if each is None else lora_slots[each] for each in ids], counts)
    return SlotRows.of(slots, device), SlotRows.of(slots[list(rows)], device)


def _block_tables(items: Sequence[ScheduledItem]) -> np.ndarray:
    width = max(len(item.block_ids) for item in items)
    tables = np.zeros((len(items), width), np.int32)
    for row, item in zip(tables, items, strict=True):
        row[: len(item.block_ids)] = item.block_ids
    return tables


def _state_rows(items: Sequence[ScheduledItem]) -> dict[str, np.ndarray]:
    """The rows of states that are read and written; none where no layer has a state."""
    if items[0].state_write < 0:
        return {}
    reads = np.fromiter((item.state_read for item in items), np.int64, len(items))
    return {"state_read": reads, "state_write": np.fromiter((item.state_write for item in items), np.int64, len(items))}


def _wanted_logits(
    items: Sequence[ScheduledItem], states: Mapping[str, RequestState], ends: np.ndarray
) -> tuple[list[int], tuple[tuple[RequestState, int], ...], tuple[tuple[RequestState, range, int], ...]]:
    """The rows whose logits are wanted, who samples from which, who wants prompt log-probabilities of which."""
    rows: list[int] = []
    sampled: list[tuple[RequestState, int]] = []
    prompts: list[tuple[RequestState, range, int]] = []
    for item, end in zip(items, ends.tolist(), strict=True):
        state = states[item.request_id]
        first = end - item.count
        if state.sampling.prompt_logprobs is not None and item.start + 1 < state.prompt_len:
            count = min(item.count, state.prompt_len - 1 - item.start)
            prompts.append((state, range(len(rows), len(rows) + count), item.start + 1))
            rows += range(first, first + count)
        if item.samples:
            if state.pooling is None:
                sampled.append((state, len(rows)))
            rows.append(end - 1)
    return rows, tuple(sampled), tuple(prompts)


def _pooling(
    items: Sequence[ScheduledItem], states: Mapping[str, RequestState], ends: np.ndarray
) -> PoolingMetadata | None:
    found = []
    for item, end in zip(items, ends.tolist(), strict=True):
        state = states[item.request_id]
        if state.pooling is not None:
            first = end - item.count
            found.append(PoolingItem(first, item.count, item.start, state.prompt_len, state.pooling, state.partial))
    return PoolingMetadata(tuple(found)) if found else None
