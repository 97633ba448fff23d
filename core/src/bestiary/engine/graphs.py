"""Decode steps that run again without Python: recorded when a number of rows first comes, and replayed from then on.

A step in which every sequence has one token depends on the host's numbers in its shape alone. Its input lies in buffers
that stay where they are; so do weights and caches.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor

from bestiary.nn.attention.metadata import AttentionMetadata
from bestiary.nn.graphs import NotRecordable, StepRecorder

from .batch import ForwardBatch
from .notices import notice

_NUMBERS = ("input_ids", "positions", "slots", "prompt_lens")
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


class StepGraphs:
    """Recorded steps by their number of rows.

    Args:
        rows, blocks: at most so many in a step, and in a sequence's block table.
    """

    def __init__(self, recorder: StepRecorder, rows: int, blocks: int, block_size: int, device: torch.device) -> None:
        self.recorder: StepRecorder | None = recorder
        self.block_size = block_size
        self.steps: OrderedDict[int, Callable[[], Tensor]] = OrderedDict()
        self.numbers = {name: torch.zeros(rows, dtype=torch.int64, device=device) for name in _NUMBERS}
        self.seq_lens = torch.zeros(rows, dtype=torch.int32, device=device)
        self.query_start = torch.arange(rows + 1, dtype=torch.int32, device=device)
        self.block_tables = torch.zeros(rows, blocks, dtype=torch.int32, device=device)

    def fits(self, batch: ForwardBatch) -> bool:
        """Whether a step is one token of every sequence, the next one wanted of each, and no adapter's."""
        plain = batch.lora is None and batch.logits_rows is None and batch.pooling is None and not batch.prompt_rows
        return self.recorder is not None and plain and batch.attention.max_query_len == 1

    def run(self, batch: ForwardBatch, compute: Callable[[ForwardBatch], Tensor]) -> Tensor:
        """The logits of a step that `fits`; good until the next step. ``compute(batch)`` makes them by running the
        model."""
        count = len(batch.input_ids)
        step = self.steps.get(count)
        if step is None:
            return self._record(batch, count, compute)
        self.steps.move_to_end(count)
        self._take(batch, count)
        return step()

    def _record(self, batch: ForwardBatch, count: int, compute: Callable[[ForwardBatch], Tensor]) -> Tensor:
        if self.recorder is None:
            return compute(batch)
        fixed = self._fixed(count)
        self._take(batch, count)
        try:
            logits, step = self.recorder.record(lambda: compute(fixed))
        except NotRecordable as reason:
            notice(f"decode steps of this model cannot be recorded, and run op by op: {reason.message}")
            self.recorder = None
            return compute(batch)
        self.steps[count] = step
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
        self.seq_lens[:count] = found.seq_lens
        self.block_tables[:count, : found.block_tables.shape[1]] = found.block_tables

    def _fixed(self, count: int) -> ForwardBatch:
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
        return ForwardBatch(
            input_ids=numbers["input_ids"], positions=numbers["positions"], attention=attention, logits_rows=None,
            sampled=(), prompt_rows=(),
        )  # fmt: skip
