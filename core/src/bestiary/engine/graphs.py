"""Decode steps that run again without Python: recorded when a number of rows first comes, and replayed from then on.

A step in which every sequence has one token depends on the host's numbers in its shape alone. Its input lies in buffers
that stay where they are; so do weights and caches.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Container

import torch
from torch import Tensor

from bestiary.nn.attention.metadata import AttentionMetadata
from bestiary.nn.graphs import NotRecordable, StepRecorder
from bestiary.nn.lora.rows import Groups, SlotRows

from .batch import ForwardBatch
from .notices import notice

_NUMBERS = ("input_ids", "positions", "slots", "prompt_lens", "adapters")
_MOST = 128
"""Recorded steps that are kept; the one that was used longest ago goes."""


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


class StepGraphs:
    """Recorded steps by their number of rows, and whether one of these may have an adapter.

    Args:
        rows, blocks: at most so many in a step, and in a sequence's block table.
    """

    def __init__(self, recorder: StepRecorder, rows: int, blocks: int, block_size: int, device: torch.device) -> None:
        self.recorder = recorder
        self.block_size = block_size
        self.steps: OrderedDict[tuple[int, bool], Callable[[], Tensor]] = OrderedDict()
        self.refused: set[bool] = set()
        self.numbers = {name: torch.zeros(rows, dtype=torch.int64, device=device) for name in _NUMBERS}
        self.seq_lens = torch.zeros(rows, dtype=torch.int32, device=device)
        self.query_start = torch.arange(rows + 1, dtype=torch.int32, device=device)
        self.block_tables = torch.zeros(rows, blocks, dtype=torch.int32, device=device)

    def fits(self, batch: ForwardBatch) -> bool:
        """Whether a step is one token of every sequence, and the next one is wanted of each."""
        plain = batch.logits_rows is None and batch.pooling is None and not batch.prompt_rows
        return plain and batch.attention.max_query_len == 1 and (batch.lora is not None) not in self.refused

    def run(self, batch: ForwardBatch, compute: Callable[[ForwardBatch], Tensor]) -> Tensor:
        """The logits of a step that `fits`; good until the next step. ``compute(batch)`` makes them by running the
        model."""
        count, adapted = len(batch.input_ids), batch.lora is not None
        step = self.steps.get((count, adapted))
        if step is None:
            return self._record(batch, count, adapted, compute)
        self.steps.move_to_end((count, adapted))
        self._take(batch, count)
        return step()

    def forget_adapted(self) -> None:
        """Record steps with adapters again: what their slots hold has changed."""
        for key in [key for key in self.steps if key[1]]:
            del self.steps[key]

    def _record(
        self, batch: ForwardBatch, count: int, adapted: bool, compute: Callable[[ForwardBatch], Tensor]
    ) -> Tensor:
        fixed = self._fixed(count, adapted)
        self._take(batch, count)
        try:
            logits, step = self.recorder.record(lambda: compute(fixed))
        except NotRecordable as reason:
            which = "with adapters " if adapted else ""
            notice(f"decode steps {which}of this model cannot be recorded, and run op by op: {reason.message}")
            self.refused.add(adapted)
            return compute(batch)
        self.steps[count, adapted] = step
        if len(self.steps) > _MOST:
            self.steps.popitem(last=False)
        return logits

    def _take(self, batch: ForwardBatch, count: int) -> None:
        """Put a step's input where the recorded ones read it."""
        found = batch.attention
        self.numbers["input_ids"][:count] = batch.input_ids
        self.numbers["positions"][:count] = batch.positions
        self.numbers["slots"][:count] = found.slot_mapping
        if found.prompt_lens is not None:
            self.numbers["prompt_lens"][:count] = found.prompt_lens
        if batch.lora is not None:
            self.numbers["adapters"][:count] = batch.lora.slots
        self.seq_lens[:count] = found.seq_lens
        self.block_tables[:count, : found.block_tables.shape[1]] = found.block_tables

    def _fixed(self, count: int, adapted: bool) -> ForwardBatch:
        numbers = {name: buffer[:count] for name, buffer in self.numbers.items()}
        attention = FixedMetadata(
            query_start=self.query_start[: count + 1],
            seq_lens=self.seq_lens[:count],
            block_tables=self.block_tables[:count],
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
