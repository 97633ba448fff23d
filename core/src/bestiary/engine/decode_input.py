"""The input of decode steps, at places that stay: one token of every sequence, and where its keys and values lie."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import replace

import torch

from bestiary.api.sampling import SamplingParams
from bestiary.nn.attention.metadata import AttentionMetadata
from bestiary.nn.graphs import NotRecordable
from bestiary.nn.lora.rows import Groups, SlotRows
from bestiary.nn.ops.step import place_rows

from .batch import ForwardBatch
from .mirrored import BlockTables, Mirrored
from .plan import NewRequest, ScheduledItem, StepPlan
from .request_state import RequestState
from .unknown_tokens import fill_in, is_unknown, tokens_of

_NUMBERS = ("input_ids", "positions", "slots", "prompt_lens", "adapters", "state_read", "state_write", "sources")
_CHANGES = 3
"""Rows of numbers after those by name: what changes in block tables."""


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
    """Buffers of as many `rows`, each sequence of at most `blocks` blocks.

    They are written on the host, sent to the device in one copy, and completed there in one launch (`place`, a version
    of `place_rows`); the device's buffers stay where they are. On a CPU both are the same memory, unless they are to be
    `apart`. One set is enough, since a step's numbers have been sent before the next one's are written.

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
        place: Callable[..., None] = place_rows.reference,
        apart: bool = False,
    ) -> None:
        device = device or torch.device("cpu")
        apart = apart or device.type != "cpu"
        self.rows, self.blocks, self.block_size = rows, blocks, block_size
        self.padded, self.spare, self.spare_row = padded, spare, spare_row
        most = max(rows, padded(rows))
        self._numbers = Mirrored((len(_NUMBERS) + _CHANGES, most), torch.int64, device, apart)
        self._seq_lens = torch.ones(most, dtype=torch.int32, device=device)
        self._tables = BlockTables(most, blocks, self._numbers.host[len(_NUMBERS) :], device, apart)
        self._place = place
        self._lens = None if apart else self._seq_lens.numpy()
        self.numbers = dict(zip(_NUMBERS, self._numbers.host, strict=False))
        self._on_device = dict(zip(_NUMBERS, self._numbers.device, strict=False))
        self.query_start = torch.arange(most + 1, dtype=torch.int32, device=device)
        self.batches: dict[tuple[int, bool], ForwardBatch] = {}
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
        self._write(items, found)
        adapted = any(state.lora_id is not None for state in found)
        if adapted:
            ids = [state.lora_id for state in found]
            self.numbers["adapters"][:count] = [-1 if each is None else lora_slots[each] for each in ids]
        rows = self.padded(count)
        self._fill(count, rows)
        self._send(rows, [(row, each) for row, each in enumerate(found) if is_unknown(each, items[row].start, 1)])
        return replace(self._batch(rows, adapted), sampled=tuple(zip(found, range(count), strict=True)))

    def nobodys(self, rows: int) -> ForwardBatch:
        """A step of so many rows without adapters that are all nobody's, its numbers put into the buffers."""
        self._fill(0, rows)
        self._send(rows, ())
        return self._batch(rows, False)

    def _write(self, items: Sequence[ScheduledItem], found: Sequence[RequestState]) -> None:
        """What the host knows of each item."""
        count, numbers, size = len(items), self.numbers, self.block_size
        numbers["input_ids"][:count] = [
            tokens_of(state, item.start, 1)[0] for state, item in zip(found, items, strict=True)
        ]
        numbers["positions"][:count] = [item.start for item in items]
        numbers["slots"][:count] = [item.block_ids[item.start // size] * size + item.start % size for item in items]
        numbers["prompt_lens"][:count] = [state.prompt_len for state in found]
        if self.spare_row >= 0:
            numbers["state_read"][:count] = [item.state_read for item in items]
            numbers["state_write"][:count] = [item.state_write for item in items]
        for row, item in enumerate(items):
            self._tables.hold(row, item.block_ids)

    def _fill(self, count: int, rows: int) -> None:
        """Rows count … rows - 1 as nobody's."""
        nobodys = (0, 0, self.spare * self.block_size, 1, -1, -1, self.spare_row)
        for name, value in zip(_NUMBERS, nobodys, strict=False):
            self.numbers[name][count:rows] = value
        for row in range(count, rows):
            self._tables.hold(row, (self.spare,))

    def _send(self, rows: int, unknown: Sequence[tuple[int, RequestState]]) -> None:
        """Let the first `rows` rows be the device's; of those that are `unknown`, it alone has the tokens."""
        if self._lens is not None:
            self._lens[:rows] = self.numbers["positions"][:rows] + 1
            fill_in(self._on_device["input_ids"], unknown)
            return
        pending = [(row, state.pending) for row, state in unknown if state.pending is not None]
        self.numbers["sources"][:rows] = -1
        for row, (_, place) in pending:
            self.numbers["sources"][row] = place
        self._tables.tell(rows)
        self._numbers.send()
        numbers = self._on_device
        self._place(
            numbers["input_ids"][:rows], numbers["positions"][:rows], numbers["sources"][:rows],
            pending[0][1][0] if pending else None, self._seq_lens[:rows], self._tables.device,
            self._numbers.device[len(_NUMBERS) :],
        )  # fmt: skip
        if self._sent is not None:
            self._sent.record()

    def _batch(self, count: int, adapted: bool) -> ForwardBatch:
        held = self.batches.get((count, adapted))
        if held is None:
            held = self.batches[count, adapted] = self.fixed(count, adapted)
        return held

    def fixed(self, count: int, adapted: bool) -> ForwardBatch:
        """A step of so many rows that reads the buffers; nothing derived from another one goes with it."""
        numbers = {name: each[:count] for name, each in self._on_device.items()}
        attention = FixedMetadata(
            query_start=self.query_start[: count + 1],
            seq_lens=self._seq_lens[:count],
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


def nobodys_prompt(tokens: int, input: DecodeInput) -> tuple[NewRequest, ScheduledItem]:
    """A prompt that is computed where rows of `input` are that nobody asked for."""
    new = NewRequest("nobody's", (0,) * tokens, SamplingParams(max_tokens=1), 0)
    blocks = (input.spare,) * -(-tokens // input.block_size)
    return new, ScheduledItem(new.request_id, 0, tokens, blocks, True, -1, input.spare_row)


def _decodes(item: ScheduledItem, state: RequestState) -> bool:
    wants_prompt = state.sampling.prompt_logprobs is not None and item.start + 1 < state.prompt_len
    return item[2] == 1 and item.samples and state.pooling is None and not wants_prompt
