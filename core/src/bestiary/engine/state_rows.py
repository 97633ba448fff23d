"""Who holds which row of layers' states: two a running sequence, and one a checkpoint. No torch.

A layer with a state (`nn.state`) keeps for each sequence something whose size does not grow. It lies in a *row*, the
same one in every such layer. A step reads the row that holds a sequence's state and writes another, never the one it
reads: so a step that failed, or whose newest token must be computed again, is run again from what was there, and the
row that it reads may be shared. Afterwards the two change places.

**Checkpoints.** A row written by a step that ends at the end of a full block is registered under that block's digest
(`kv_cache.py`), and its sequence gets another one to write. From then on it is never written: any sequence with this
beginning may read it. Once nobody holds it, it is handed out again, the least recently used first. Of an answer only
the newest checkpoint is kept, since a next turn begins with all of it; those of prompts stay as long as there is room.
A digest stands for the tokens that were computed, so a checkpoint stays right when its blocks are gone and come back.
"""

from __future__ import annotations

from .block_pool import BlockPool
from .sequence import Sequence, Status

WORKING_ROWS = 2
"""Rows of one running sequence."""


def least_rows(prefix_caching: bool) -> int:
    """What one sequence alone needs: its own rows, and the checkpoint that it begins with."""
    return WORKING_ROWS + prefix_caching


class StateRows:
    """Gives rows to sequences and takes them back; the only writer of their `state_…` attributes and of the pool."""

    __slots__ = ("pool",)

    def __init__(self, num_rows: int) -> None:
        self.pool = BlockPool(num_rows)

    def has(self, digest: bytes) -> bool:
        """Whether there is a checkpoint with this content."""
        return self.pool.find(digest) is not None

    def begin_with(self, sequence: Sequence, digest: bytes) -> None:
        """Let a sequence without rows begin with a checkpoint that there is."""
        row = self.pool.find(digest)
        if row is not None:
            self.pool.share(row)
            sequence.state_read = row

    def fits(self, sequence: Sequence) -> bool:
        """Whether `allocate` would succeed."""
        return self._missing(sequence) <= self.pool.num_free

    def allocate(self, sequence: Sequence) -> None:
        """Give a sequence that fits its working rows: both when it is admitted, later the one that it lacks."""
        missing = self._missing(sequence)
        if missing:
            sequence.state_write = self.pool.take()
        if missing == WORKING_ROWS:
            sequence.state_spare = self.pool.take()

    def advance(self, sequence: Sequence) -> None:
        """What the last step wrote is the sequence's state now. If no row is left for the next step, it lacks one."""
        pool, old = self.pool, sequence.state_read
        sequence.state_read, sequence.state_write = sequence.state_write, sequence.state_spare
        sequence.state_spare = -1
        if old >= 0 and sequence.state_write < 0 and pool.is_private(old):
            sequence.state_write = old
            return
        if old >= 0:
            pool.release(old)
        if sequence.state_write < 0 and pool.num_free:
            sequence.state_write = pool.take()

    def keep(self, sequence: Sequence, digest: bytes) -> None:
        """Make the sequence's state a checkpoint: all tokens under `digest` have been taken in, and no others."""
        if self.pool.register(sequence.state_read, digest) and sequence.num_computed > sequence.num_prompt:
            if sequence.state_checkpoint is not None:
                self.pool.drop(sequence.state_checkpoint)
            sequence.state_checkpoint = digest

    def free(self, sequence: Sequence, *, forget: bool = False) -> None:
        """Take all rows back. forget: as `KVCacheManager.free` says."""
        if forget:
            for digest in sequence.digests:
                self.pool.drop(digest)
        for row in (sequence.state_write, sequence.state_spare, sequence.state_read):
            if row >= 0:
                self.pool.release(row)
        sequence.state_read = sequence.state_write = sequence.state_spare = -1

    def clear(self) -> None:
        """Forget all checkpoints."""
        for row in range(self.pool.num_blocks):
            self.pool.forget(row)

    @staticmethod
    def _missing(sequence: Sequence) -> int:
        if sequence.status is not Status.RUNNING:
            return WORKING_ROWS
        return int(sequence.state_write < 0)
