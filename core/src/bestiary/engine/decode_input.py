"""The input of decode steps, at places that stay: one token of every sequence, and where its keys and values lie."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import replace

import torch

from bestiary.nn.attention.metadata import AttentionMetadata
from bestiary.nn.graphs import NotRecordable
from bestiary.nn.lora.rows import Groups, SlotRows

from .batch import ForwardBatch
from .plan import ScheduledItem, StepPlan
from .request_state import RequestState
from .unknown_tokens import fill_in, is_unknown, tokens_of

_FEW = 16
"""Block tables that are sent one by one; more go all together."""
_NUMBERS = ("input_ids", "positions", "slots", "prompt_lens", "adapters", "state_read", "state_write")


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


class Mirrored:
    """Numbers that are written on the host and read on a device.

    Attributes:
        host: an array; on a CPU the device's own memory, otherwise pinned, so that `send` need not wait.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        self._source = torch.zeros(shape, dtype=dtype, pin_memory=device.type == "cuda")
        self.host = self._source.numpy()
        self.device = self._source if device.type == "cpu" else self._source.to(device)

    def send(self, first: int = 0, last: int | None = None) -> None:
        """Make the device's rows first … last - 1 the host's; what is queued there afterwards reads them."""
        if self.device is not self._source:
            self.device[first:last].copy_(self._source[first:last], non_blocking=True)


class DecodeInput:
    """Buffers of as many `rows`, each sequence of at most `blocks` blocks.

    They are written on the host and then sent to the device, whose buffers stay where they are; on a CPU both are the
    same memory. One set is enough, since a step's numbers have been sent before the next one's are written.

    Attributes:
        batches: what a step of so many rows is, by (rows, whether one may have an adapter); all look at the buffers.
        padded: the size of the step that so many rows are computed in. Rows beyond those asked for are sequences of one
            token in the block `spare`, which is nobody's; so is the row `spare_row` of layers' states, −1 where no
            layer has one.
    """

    def __init__(
        self,
        rows: int,
        blocks: int,
        block_size: int,
        device: torch.device | None = None,
        padded: Callable[[int], int] = int,
        spare: int = 0,
        spare_row: int = -1,
    ) -> None:
        device = device or torch.device("cpu")
        self.rows, self.blocks, self.block_size = rows, blocks, block_size
        self.padded, self.spare, self.spare_row = padded, spare, spare_row
        most = max(rows, padded(rows))
        self._numbers = Mirrored((len(_NUMBERS), most), torch.int64, device)
        self._seq_lens = Mirrored((most,), torch.int32, device)
        self._tables = Mirrored((most, blocks), torch.int32, device)
        self.numbers = dict(zip(_NUMBERS, self._numbers.host, strict=True))
        self.query_start = torch.arange(most + 1, dtype=torch.int32, device=device)
        self.batches: dict[tuple[int, bool], ForwardBatch] = {}
        self._held: list[tuple[int, ...]] = [()] * most
        self._sent = torch.cuda.Event() if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def take(
        self, plan: StepPlan, states: Mapping[str, RequestState], lora_slots: Mapping[str, int]
    ) -> ForwardBatch | None:
        """Put a plan's numbers into the buffers, and the step that reads them there; None where it is no such step:
        one token of every sequence, the next one wanted of each, and nothing else."""
        if self._sent is not None:
            self._sent.synchronize()
        items, count = plan.items, len(plan.items)
        found = [states[item.request_id] for item in items]
        if count > self.rows or not all(map(_decodes, items, found)):
            return None
        starts = [item.start for item in items]
        numbers, size = self.numbers, self.block_size
        unknown = [
            (row, state) for row, (state, start) in enumerate(zip(found, starts, strict=True))
            if is_unknown(state, start, 1)
        ]  # fmt: skip
        numbers["input_ids"][:count] = [
            tokens_of(state, start, 1)[0] for state, start in zip(found, starts, strict=True)
        ]
        numbers["positions"][:count] = starts
        numbers["slots"][:count] = [item.block_ids[item.start // size] * size + item.start % size for item in items]
        numbers["prompt_lens"][:count] = [state.prompt_len for state in found]
        if self.spare_row >= 0:
            numbers["state_read"][:count] = [item.state_read for item in items]
            numbers["state_write"][:count] = [item.state_write for item in items]
        self._seq_lens.host[:count] = numbers["positions"][:count] + 1
        moved = [row for row, item in enumerate(items) if self._hold(row, item.block_ids)]
        adapted = any(state.lora_id is not None for state in found)
        if adapted:
            ids = [state.lora_id for state in found]
            numbers["adapters"][:count] = [-1 if each is None else lora_slots[each] for each in ids]
        rows = self.padded(count)
        moved += self._fill(count, rows)
        self._send(moved, rows)
        batch = self._batch(rows, adapted)
        fill_in(batch.input_ids, unknown)
        sampled = tuple(zip(found, range(count), strict=True))
        return replace(batch, sampled=sampled)

    def nobodys(self, rows: int) -> ForwardBatch:
        """A step of so many rows without adapters that are all nobody's, its numbers put into the buffers."""
        self._send(self._fill(0, rows), rows)
        return self._batch(rows, False)

    def _send(self, moved: list[int], rows: int) -> None:
        """Make the device's numbers the host's; of the first `rows` block tables those that were `moved`."""
        self._numbers.send()
        self._seq_lens.send()
        if len(moved) > _FEW:
            self._tables.send(0, rows)
        else:
            for row in moved:
                self._tables.send(row, row + 1)
        if self._sent is not None:
            self._sent.record()

    def _hold(self, row: int, block_ids: tuple[int, ...]) -> bool:
        """Write a row's block table; whether it is another one than before."""
        if self._held[row] == block_ids:
            return False
        self._held[row] = block_ids
        self._tables.host[row, : len(block_ids)] = block_ids
        return True

    def _fill(self, count: int, rows: int) -> list[int]:
        """Rows count … rows - 1 as nobody's; which of them have another block table than before."""
        if count == rows:
            return []
        nobodys = (0, 0, self.spare * self.block_size, 1, -1, -1, self.spare_row)
        for name, value in zip(_NUMBERS, nobodys, strict=True):
            self.numbers[name][count:rows] = value
        self._seq_lens.host[count:rows] = 1
        return [row for row in range(count, rows) if self._hold(row, (self.spare,))]

    def _batch(self, count: int, adapted: bool) -> ForwardBatch:
        held = self.batches.get((count, adapted))
        if held is None:
            held = self.batches[count, adapted] = self.fixed(count, adapted)
        return held

    def fixed(self, count: int, adapted: bool) -> ForwardBatch:
        """A step of so many rows that reads the buffers; nothing derived from another one goes with it."""
        numbers = {name: each[:count] for name, each in zip(_NUMBERS, self._numbers.device, strict=True)}
        attention = FixedMetadata(
            query_start=self.query_start[: count + 1],
            seq_lens=self._seq_lens.device[:count],
            block_tables=self._tables.device[:count],
            slot_mapping=numbers["slots"],
            query_lens_host=(1,) * count,
            seq_lens_host=(),
            max_query_len=1,
            max_seq_len=0,
            num_decodes=count,
            block_size=self.block_size,
            prompt_lens=numbers["prompt_lens"],
            state_read=numbers["state_read"] if self.spare_row >= 0 else None,
            state_write=numbers["state_write"] if self.spare_row >= 0 else None,
        )
        adapters = FixedSlotRows(numbers["adapters"]) if adapted else None
        return ForwardBatch(
            input_ids=numbers["input_ids"], positions=numbers["positions"], attention=attention, logits_rows=None,
            sampled=(), prompt_rows=(), lora=adapters, logits_lora=adapters,
        )  # fmt: skip


def _decodes(item: ScheduledItem, state: RequestState) -> bool:
    wants_prompt = state.sampling.prompt_logprobs is not None and item.start + 1 < state.prompt_len
    return item[2] == 1 and item.samples and state.pooling is None and not wants_prompt
