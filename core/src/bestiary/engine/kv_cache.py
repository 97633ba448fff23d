"""Who holds which block of the paged KV cache: reference counts, a free list, and the prefix cache. No torch.

A block holds the keys and values of `block_size` consecutive tokens of a sequence, in every layer. Token ``i`` lives in
block ``block_table[i // block_size]``; layers with a sliding window use the same table. A block is in exactly one
place: held (reference count ≥ 1) or free. Free blocks keep their content, and their place in the prefix cache, until
they are handed out again, the least recently used first.

Only full blocks whose tokens *have been computed* are shared, so a shared block is never written to.

**The digest of a block** decides whether two blocks are the same. It is SHA-256 over typed bytes, so that no two
different contexts have the same input (and nobody can make two that collide)::

    root     = sha256("bestiary.kv/2" ‖ text(cache_salt) ‖ text(lora_name) ‖ text(prompt_salt))
    digest_i = sha256(digest_{i-1} ‖ the block's token ids, each a little-endian signed 32-bit integer)
    text(None) = 00        text(s) = 01 ‖ length in bytes as little-endian 32-bit ‖ UTF-8
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256

from bestiary.api.errors import EngineError

from .sequence import Sequence
from .state_rows import StateRows


@dataclass(frozen=True, slots=True)
class KVCacheUsage:
    """Blocks in all, held, free; prefix-cache look-ups and hits, in tokens, of requests at their first admission."""

    num_blocks: int
    used_blocks: int
    free_blocks: int
    cached_blocks: int
    prefix_queries: int
    prefix_hits: int


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
            raise EngineError(f"KV block {block} was released more often than it was held")
        self.references[block] -= 1
        if self.references[block] == 0:
            self._free[block] = None
            if self._digest[block] is None:
                self._free.move_to_end(block, last=False)

    def register(self, block: int, digest: bytes) -> None:
        """Make a computed block findable; the first block with some content keeps its name."""
        if digest not in self._by_digest:
            self._by_digest[digest] = block
            self._digest[block] = digest

    def forget(self, block: int) -> None:
        """Make a block's content unfindable."""
        digest = self._digest[block]
        if digest is not None:
            del self._by_digest[digest]
            self._digest[block] = None

    def is_free(self, block: int) -> bool:
        return block in self._free


class KVCacheManager:
    """Gives blocks to sequences and takes them back; the only writer of their block tables and of the pool.

    In models with states, `states` has the rows, and a beginning is only found where a checkpoint stands at its end.
    """

    __slots__ = ("_block_format", "_prefix_hits", "_prefix_queries", "block_size", "pool", "prefix_caching", "states")

    def __init__(
        self, num_blocks: int, block_size: int, *, prefix_caching: bool = True, states: StateRows | None = None
    ) -> None:
        self.states = states
        self.pool = BlockPool(num_blocks)
        self.block_size = block_size
        self.prefix_caching = prefix_caching
        self._block_format = struct.Struct(f"<{block_size}i")
        self._prefix_queries = 0
        self._prefix_hits = 0

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def match_prefix(self, sequence: Sequence) -> int:
        """Give a sequence without blocks the longest cached beginning it may use; returns its length in tokens.

        The caller either keeps it (`allocate`, `count_admission`) or gives it back (`free`).
        """
        if not self.prefix_caching:
            return 0
        limit = sequence.max_matched // self.block_size
        self._extend_digests(sequence, limit)
        found = []
        for digest in sequence.digests[:limit]:
            block = self.pool.find(digest)
            if block is None:
                break
            found.append(block)
        if self.states is not None:
            while found and not self.states.has(sequence.digests[len(found) - 1]):
                found.pop()
            self.states.begin(sequence, sequence.digests[len(found) - 1] if found else None)
        for block in found:
            self.pool.share(block)
            sequence.block_table.append(block)
        sequence.num_registered = len(sequence.block_table)
        self._table_changed(sequence)
        sequence.num_computed = sequence.capacity
        return sequence.num_computed

    def fits(self, sequence: Sequence, num_tokens: int) -> bool:
        """Whether `allocate` would succeed."""
        return self.blocks_for(num_tokens) - len(sequence.block_table) <= self.pool.num_free

    def allocate(self, sequence: Sequence, num_tokens: int) -> bool:
        """Make room for the first `num_tokens` tokens; False, and nothing changed, if there are not enough blocks."""
        missing = self.blocks_for(num_tokens) - len(sequence.block_table)
        if missing > self.pool.num_free:
            return False
        if missing > 0:
            sequence.block_table += [self.pool.take() for _ in range(missing)]
            self._table_changed(sequence)
        return True

    def register_computed(self, sequence: Sequence) -> None:
        """Make full blocks findable, now that ``sequence.num_computed`` tokens have really been computed."""
        full = sequence.num_computed // self.block_size
        if not self.prefix_caching or full <= sequence.num_registered:
            return
        self._extend_digests(sequence, full)
        for index in range(sequence.num_registered, full):
            self.pool.register(sequence.block_table[index], sequence.digests[index])
        sequence.num_registered = full

    def advance_state(self, sequence: Sequence) -> None:
        """The step that was scheduled for a sequence was computed, up to ``sequence.num_computed``."""
        if self.states is not None:
            full, rest = divmod(sequence.num_computed, self.block_size)
            known = self.prefix_caching and not rest and full
            self.states.advance(sequence, sequence.digests[full - 1] if known else None)

    def piece(self, sequence: Sequence, count: int) -> int:
        """How many of a sequence's next `count` tokens one step should compute: in models with states, those up to the
        last full block before its newest token, so that a checkpoint is left there, unless one stands there.

        The newest token of an answer with a form goes by itself: where its grammar is not ready it is computed again,
        and a state cannot give back what it has taken in.
        """
        if self.states is None or count == 1:
            return count
        start, total = sequence.num_computed, sequence.total
        end = start + count
        if self.prefix_caching:
            full = min(end, total - 1) // self.block_size
            self._extend_digests(sequence, full)
            if full * self.block_size > start and (end < total or not self.states.has(sequence.digests[full - 1])):
                end = full * self.block_size
        if end == total and sequence.sampling.structured_outputs is not None:
            end -= 1
        return end - start

    def free(self, sequence: Sequence, *, forget: bool = False) -> None:
        """Take all blocks back. The last go first, so that a prefix outlives what follows it.

        forget: the content is not to be trusted (NaN or Inf came out of it) and must not reach another request.
        """
        if self.states is not None:
            self.states.end(sequence)
            for digest in sequence.digests if forget else ():
                self.states.forget(digest)
        for block in reversed(sequence.block_table):
            if forget:
                self.pool.forget(block)
            self.pool.release(block)
        sequence.block_table.clear()
        sequence.num_computed = 0
        sequence.num_registered = 0
        self._table_changed(sequence)

    def count_admission(self, sequence: Sequence) -> None:
        """Enter a first admission into the statistics; call it with the matched prefix in place."""
        sequence.cached_tokens = sequence.num_computed
        self._prefix_queries += sequence.total
        self._prefix_hits += sequence.num_computed

    def clear_prefix_cache(self) -> None:
        """Forget all content: the weights changed, or a measurement wants a cold cache."""
        for block in range(self.pool.num_blocks):
            self.pool.forget(block)
        if self.states is not None:
            self.states.clear()

    def usage(self) -> KVCacheUsage:
        free = self.pool.num_free
        return KVCacheUsage(
            num_blocks=self.pool.num_blocks,
            used_blocks=self.pool.num_blocks - free,
            free_blocks=free,
            cached_blocks=self.pool.num_cached,
            prefix_queries=self._prefix_queries,
            prefix_hits=self._prefix_hits,
        )

    def _table_changed(self, sequence: Sequence) -> None:
        sequence.block_ids = tuple(sequence.block_table)
        sequence.capacity = len(sequence.block_table) * self.block_size

    def _extend_digests(self, sequence: Sequence, num_blocks: int) -> None:
        """Digests of a sequence's first `num_blocks` blocks; tokens never change, so each is made once."""
        digests, size = sequence.digests, self.block_size
        while len(digests) < num_blocks:
            start = len(digests) * size
            digests.append(
                self._digest(digests[-1] if digests else _root(sequence), sequence.token_ids[start : start + size])
            )

    def _digest(self, parent: bytes, token_ids: Iterable[int]) -> bytes:
        return sha256(parent + self._block_format.pack(*token_ids)).digest()


def _root(sequence: Sequence) -> bytes:
    kinds = (sequence.cache_salt, sequence.lora_name, sequence.prompt_salt)
    return sha256(b"bestiary.kv/2" + b"".join(map(_text, kinds))).digest()


def _text(value: str | None) -> bytes:
    if value is None:
        return b"\x00"
    data = value.encode("utf-8", "surrogatepass")
    return b"\x01" + struct.pack("<I", len(data)) + data
