"""Who has which row of layers' states: sequences that run, and checkpoints of the prefix cache. No torch.

A layer with a state (a state-space layer, a short convolution …) keeps a row for each sequence that runs, of one size
whatever the sequence's length. A step reads one row and writes another, so a step that failed can be run again, a token
can be computed again, and the row that is read may be one that others read as well.

A running sequence thus holds at most two rows: the one with its state, and the one that its next step writes. With at
least ``2 * running`` rows there is always one to be had, for of those that no sequence holds each is free or a
checkpoint, and checkpoints give way, the least recently used first. A step that is planned upon one in flight reads
what that writes, and writes a third row, where there are enough; which is the sequence's second when that is computed.

A checkpoint is the state at the end of a full block, known by that block's digest (`kv_cache.py`), from which any
sequence with the same beginning can go on. It costs no copy: the row just written is kept, and the sequence goes on in
another. Of an answer only the newest checkpoint is kept, since the next turn of a conversation begins with all of it;
those of prompts stay as long as there is room. A digest stands for the tokens that were computed, so a checkpoint whose
blocks are gone is right again when they come back.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence as SequenceOf

from bestiary.api.errors import EngineError

from .sequence import Sequence

NONE = -1
"""No row: a sequence that begins has no state yet, and zeros are read in its place."""
WORKING_ROWS = 2
"""What a running sequence holds at most, while no step is planned upon one in flight."""


class StateRows:
    """Hands out the rows of one engine; the only writer of sequences' `state_row`, `next_row`, `ahead_row` and
    `checkpoint`."""

    __slots__ = ("_checkpoints", "_free", "_held", "num_rows")

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows
        self._held = [0] * num_rows  # by sequences, and once more by the prefix cache
        self._free = list(range(num_rows))[::-1]
        self._checkpoints: OrderedDict[bytes, int] = OrderedDict()

    @property
    def num_checkpoints(self) -> int:
        return len(self._checkpoints)

    def has(self, digest: bytes) -> bool:
        """Whether the state at the end of the block with this digest is kept."""
        return digest in self._checkpoints

    def begin(self, sequence: Sequence, digest: bytes | None) -> None:
        """Let a sequence without rows go on from a checkpoint, or from nothing."""
        if digest is not None:
            self._checkpoints.move_to_end(digest)
            sequence.state_row = self._checkpoints[digest]
            self._held[sequence.state_row] += 1

    def schedule(self, sequence: Sequence) -> tuple[int, int]:
        """The rows that a sequence's next step reads, or `NONE`, and writes."""
        if sequence.next_row == NONE:
            sequence.next_row = self._take()
        return sequence.state_row, sequence.next_row

    def schedule_ahead(self, sequences: SequenceOf[Sequence]) -> list[tuple[int, int]] | None:
        """The rows that sequences' steps upon those in flight read and write; None where there are too few."""
        missing = len(sequences) - len(self._free)
        if missing > 0 and sum(self._held[row] == 1 for row in self._checkpoints.values()) < missing:
            return None
        for sequence in sequences:
            sequence.ahead_row = self._take()
        return [(sequence.next_row, sequence.ahead_row) for sequence in sequences]

    def drop_ahead(self, sequence: Sequence) -> None:
        """What was planned upon a step in flight comes to nothing."""
        if sequence.ahead_row != NONE:
            self._release(sequence.ahead_row)
        sequence.ahead_row = NONE

    def advance(self, sequence: Sequence, digest: bytes | None) -> None:
        """A step was computed: what it wrote is the sequence's state now; at the end of the block with this `digest`,
        if there is one, which is kept."""
        read, sequence.state_row = sequence.state_row, sequence.next_row
        sequence.next_row, sequence.ahead_row = sequence.ahead_row, NONE
        if digest is not None and digest not in self._checkpoints:
            self._checkpoints[digest] = sequence.state_row
            self._held[sequence.state_row] += 1
            if sequence.num_computed > sequence.num_prompt:
                if sequence.checkpoint is not None:
                    self.forget(sequence.checkpoint)
                sequence.checkpoint = digest
        if read != NONE:
            self._release(read)

    def end(self, sequence: Sequence) -> None:
        """Take a sequence's rows back."""
        self.drop_ahead(sequence)
        for row in (sequence.state_row, sequence.next_row):
            if row != NONE:
                self._release(row)
        sequence.state_row = sequence.next_row = NONE

    def forget(self, digest: bytes) -> None:
        """Drop the checkpoint of a block, if there is one."""
        row = self._checkpoints.pop(digest, None)
        if row is not None:
            self._release(row)

    def clear(self) -> None:
        """Drop all checkpoints."""
        for digest in list(self._checkpoints):
            self.forget(digest)

    def _take(self) -> int:
        if not self._free:
            idle = next((digest for digest, row in self._checkpoints.items() if self._held[row] == 1), None)
            if idle is None:
                raise EngineError(f"all {self.num_rows} rows of states are held", field="num_rows", value=self.num_rows)
            self.forget(idle)
        row = self._free.pop()
        self._held[row] = 1
        return row

    def _release(self, row: int) -> None:
        self._held[row] -= 1
        if self._held[row] == 0:
            self._free.append(row)
