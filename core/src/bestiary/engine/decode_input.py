"""The input of decode steps, at places that stay: one token of every sequence, and where its keys and values lie."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import replace

import numpy as np
import torch

from bestiary.nn.attention.metadata import AttentionMetadata
from bestiary.nn.graphs import NotRecordable
from bestiary.nn.lora.rows import Groups, SlotRows

from .batch import ForwardBatch
from .plan import ScheduledItem, StepPlan
from .request_state import RequestState

_NUMBERS = ("input_ids", "positions", "slots", "prompt_lens", "adapters")


class FixedMetadata(AttentionMetadata):
    """A decode step's geometry whose lengths are known to the device alone. Who asks for them cannot be recorded."""

    __slots__ = ()

    @property
    def seq_lens_host(self) -> tuple[int, ...]:
        raise NotRecordable("a layer reads seq_lens_host")

    @seq_lens_host.setter
    def seq_lens_host(self, value: tuple[int, ...]) -> None:
        return

    @property
    def max_seq_len(self) -> int:
        raise NotRecordable("a layer reads max_seq_len")

    @max_seq_len.setter
    def max_seq_len(self, value: int) -> None:
        return


class FixedSlotRows(SlotRows):
    """Which adapter slot each row has is known to the device alone."""

    __slots__ = ()

    @property
    def groups(self) -> Groups:
        raise NotRecordable("a layer with adapters goes by groups of rows")

    def within(self, slots: Container[int]) -> SlotRows:
        return self


class DecodeInput:
    """Buffers of as many `rows`, each sequence of at most `blocks` blocks. On a CPU the device's memory is the host's.

    Attributes:
        batches: what a step of so many rows is, by (rows, whether one may have an adapter); all look at the buffers.
    """

    def __init__(self, rows: int, blocks: int, block_size: int) -> None:
        self.rows, self.blocks, self.block_size = rows, blocks, block_size
        self.numbers = {name: np.zeros(rows, np.int64) for name in _NUMBERS}
        self.seq_lens = np.zeros(rows, np.int32)
        self.query_start = torch.arange(rows + 1, dtype=torch.int32)
        self.block_tables = np.zeros((rows, blocks), np.int32)
        self.batches: dict[tuple[int, bool], ForwardBatch] = {}
        self._held: list[tuple[int, ...]] = [()] * rows

    def take(
        self, plan: StepPlan, states: Mapping[str, RequestState], lora_slots: Mapping[str, int]
    ) -> ForwardBatch | None:
        """Put a plan's numbers into the buffers, and the step that reads them there; None where it is no such step:
        one token of every sequence, the next one wanted of each, and nothing else."""
        items, count = plan.items, len(plan.items)
        found = [states[item.request_id] for item in items]
        if count > self.rows or not all(map(_decodes, items, found)):
            return None
        starts = [item.start for item in items]
        numbers, size = self.numbers, self.block_size
        numbers["input_ids"][:count] = [state.tokens[start] for state, start in zip(found, starts, strict=True)]
        numbers["positions"][:count] = starts
        numbers["slots"][:count] = [item.block_ids[item.start // size] * size + item.start % size for item in items]
        numbers["prompt_lens"][:count] = [state.prompt_len for state in found]
        self.seq_lens[:count] = numbers["positions"][:count] + 1
        for row, item in enumerate(items):
            if self._held[row] != item.block_ids:
                self._held[row] = item.block_ids
                self.block_tables[row, : len(item.block_ids)] = item.block_ids
        adapted = any(state.lora_id is not None for state in found)
        if adapted:
            ids = [state.lora_id for state in found]
            numbers["adapters"][:count] = [-1 if each is None else lora_slots[each] for each in ids]
        sampled = tuple(zip(found, range(count), strict=True))
        return replace(self._batch(count, adapted), sampled=sampled)

    def _batch(self, count: int, adapted: bool) -> ForwardBatch:
        held = self.batches.get((count, adapted))
        if held is None:
            held = self.batches[count, adapted] = self.fixed(count, adapted)
        return held

    def fixed(self, count: int, adapted: bool) -> ForwardBatch:
        """A step of so many rows that reads the buffers; nothing derived from another one goes with it."""
        numbers = {name: torch.from_numpy(buffer)[:count] for name, buffer in self.numbers.items()}
        attention = FixedMetadata(
            query_start=self.query_start[: count + 1],
            seq_lens=torch.from_numpy(self.seq_lens)[:count],
            block_tables=torch.from_numpy(self.block_tables)[:count],
            slot_mapping=numbers["slots"],
            query_lens_host=(1,) * count,
            seq_lens_host=(),
            max_query_len=1,
            max_seq_len=0,
            num_decodes=count,
            block_size=self.block_size,
            prompt_lens=numbers["prompt_lens"],
        )
        adapters = FixedSlotRows(numbers["adapters"]) if adapted else None
        return ForwardBatch(
            input_ids=numbers["input_ids"], positions=numbers["positions"], attention=attention, logits_rows=None,
            sampled=(), prompt_rows=(), lora=adapters, logits_lora=adapters,
        )  # fmt: skip


def _decodes(item: ScheduledItem, state: RequestState) -> bool:
    wants_prompt = state.sampling.prompt_logprobs is not None and item.start + 1 < state.prompt_len
    return item[2] == 1 and item.samples and state.pooling is None and not wants_prompt
