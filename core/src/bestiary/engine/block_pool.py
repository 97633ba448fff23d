"""A fixed number of blocks of memory: who is free, how often each is held, and what is known by its content. No torch.

A block is in exactly one place: held (reference count ≥ 1) or free. Free blocks keep their content, and their place
among what can be found, until they are handed out again, the least recently used first. The paged KV cache has one such
pool, and the rows of layers' states are another.
"""

from __future__ import annotations

from collections import OrderedDict

from bestiary.api.errors import EngineError


class BlockPool:
    """A fixed number of blocks: who is free, how often each is held, and which content is known by digest."""

    __slots__ = ("_by_digest", "_digest", "_free", "num_blocks", "references")

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.references = [0] * num_blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._digest: list[bytes | None] = [None] * num_blocks
        self._by_digest: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_cached(self) -> int:
        return len(self._by_digest)

    def find(self, digest: bytes) -> int | None:
        """The block with this content, held or free; None if there is none."""
        return self._by_digest.get(digest)

    def take(self) -> int:
        """The least recently used free block, now held once and without content."""
        block, _ = self._free.popitem(last=False)
        self.forget(block)
        self.references[block] = 1
        return block

    def share(self, block: int) -> None:
        """Hold a block, found by its content, once more."""
        if self.references[block] == 0:
            del self._free[block]
        self.references[block] += 1

    def release(self, block: int) -> None:
        """Hold a block once less. Blocks without reusable content are handed out again first."""
        if self.references[block] <= 0:
            raise EngineError(f"cache block {block} was released more often than it was held")
        self.references[block] -= 1
        if self.references[block] == 0:
            self._free[block] = None
            if self._digest[block] is None:
                self._free.move_to_end(block, last=False)

    def register(self, block: int, digest: bytes) -> bool:
        """Make a computed block findable; False where another with the same content is, which stays the one found."""
        if digest in self._by_digest:
            return False
        self._by_digest[digest] = block
        self._digest[block] = digest
        return True

    def forget(self, block: int) -> None:
        """Make a block's content unfindable."""
        digest = self._digest[block]
        if digest is not None:
            del self._by_digest[digest]
            self._digest[block] = None

    def drop(self, digest: bytes) -> None:
        """Forget this content, wherever it is, and hand a free block that had it out first."""
        block = self._by_digest.get(digest)
        if block is not None:
            self.forget(block)
            if block in self._free:
                self._free.move_to_end(block, last=False)

    def is_private(self, block: int) -> bool:
        """Whether a held block is held once and cannot be found, so that its holder may write it anew."""
        return self.references[block] == 1 and self._digest[block] is None

    def is_free(self, block: int) -> bool:
        return block in self._free
