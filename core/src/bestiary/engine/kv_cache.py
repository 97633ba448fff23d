"""Who holds which block of the paged KV cache: reference counts, a free list, and the prefix cache. No torch.

A block holds the keys and values of `block_size` consecutive tokens of a sequence, in every layer. Token ``i`` lives in
block ``block_table[i // block_size]``; layers with a sliding window use the same table. Free blocks keep their content,
and their place in the prefix cache, until they are handed out again (`block_pool.py`).

Only full blocks whose tokens *have been computed* are shared, so a shared block is never written to. Where layers keep
a state (`state_rows.py`), a prefix can be used as far as its blocks are there *and* a checkpoint stands at its end.

**The digest of a block** decides whether two blocks are the same. It is SHA-256 over typed bytes, so that no two
different contexts have the same input (and nobody can make two that collide)::

    root     = sha256("bestiary.kv/2" ‖ text(cache_salt) ‖ text(lora_name) ‖ text(prompt_salt))
    digest_i = sha256(digest_{i-1} ‖ the block's token ids, each a little-endian signed 32-bit integer)
    text(None) = 00        text(s) = 01 ‖ length in bytes as little-endian 32-bit ‖ UTF-8
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256

from .block_pool import BlockPool
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


class KVCacheManager:
    """Gives blocks to sequences and takes them back; the only writer of their block tables and of the pool.

    Attributes:
        states: who holds which row of layers' states; None where no layer has one.
    """

    __slots__ = ("_block_format", "_prefix_hits", "_prefix_queries", "block_size", "pool", "prefix_caching", "states")

    def __init__(self, num_blocks: int, block_size: int, *, prefix_caching: bool = True, state_rows: int = 0) -> None:
        self.states = StateRows(state_rows) if state_rows else None
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
        found = self._found(sequence.digests[:limit])
        if self.states is not None:
            while found and not self.states.has(sequence.digests[len(found) - 1]):
                found.pop()
            if found:
                self.states.begin_with(sequence, sequence.digests[len(found) - 1])
        for block in found:
            self.pool.share(block)
        sequence.block_table += found
        sequence.num_registered = len(sequence.block_table)
        self._table_changed(sequence)
        sequence.num_computed = sequence.capacity
        return sequence.num_computed

    def _found(self, digests: Iterable[bytes]) -> list[int]:
        """The blocks with these contents, up to the first that is not there."""
        found = []
        for digest in digests:
            block = self.pool.find(digest)
            if block is None:
                break
            found.append(block)
        return found

    def fits(self, sequence: Sequence, num_tokens: int) -> bool:
        """Whether `allocate` would succeed."""
        missing = self.blocks_for(num_tokens) - len(sequence.block_table)
        return missing <= self.pool.num_free and (self.states is None or self.states.fits(sequence))

    def has_room(self, sequence: Sequence, num_tokens: int) -> bool:
        """Whether a running sequence has all that computing its first `num_tokens` tokens takes."""
        return num_tokens <= sequence.capacity and (self.states is None or sequence.state_write >= 0)

    def allocate(self, sequence: Sequence, num_tokens: int) -> bool:
        """Make room for the first `num_tokens` tokens; False, and nothing changed, if there is not enough."""
        missing = self.blocks_for(num_tokens) - len(sequence.block_table)
        if missing > self.pool.num_free or not (self.states is None or self.states.fits(sequence)):
            return False
        if self.states is not None:
            self.states.allocate(sequence)
        if missing > 0:
            sequence.block_table += [self.pool.take() for _ in range(missing)]
            self._table_changed(sequence)
        return True

    def piece(self, sequence: Sequence, count: int) -> int:
        """How many of the `count` tokens that may be computed next are computed in one step.

        All, where no layer has a state. Otherwise a step ends where a checkpoint is to stand: at the end of the last
        full block that a later request with these tokens could begin with, unless one stands there; and a piece that is
        cut short by the budget ends at a block's end. The newest token of an answer with a form goes by itself: where
        its grammar is not ready it is computed again, from the state before the step.
        """
        if self.states is None or count == 1:
            return count
        start, total = sequence.num_computed, sequence.total
        end = start + count
        if self.prefix_caching:
            last = min(end, total - 1) // self.block_size
            self._extend_digests(sequence, last)
            if last * self.block_size > start and (end < total or not self.states.has(sequence.digests[last - 1])):
                end = last * self.block_size
        if end == total and sequence.sampling.structured_outputs is not None:
            end -= 1
        return end - start

    def computed(self, sequence: Sequence, count: int, *, again: bool = False) -> None:
        """Note that a sequence's next `count` tokens were computed. again: the newest of them must be once more.

        A layer's state has taken that in and cannot give it back; so all are computed again then, from the row before.
        """
        if again and self.states is not None:
            return
        sequence.num_computed += count - again
        self.register_computed(sequence)
        if self.states is not None:
            self.states.advance(sequence)
            full, rest = divmod(sequence.num_computed, self.block_size)
            if self.prefix_caching and not rest:
                self.states.keep(sequence, sequence.digests[full - 1])

    def register_computed(self, sequence: Sequence) -> None:
        """Make full blocks findable, now that ``sequence.num_computed`` tokens have really been computed."""
        full = sequence.num_computed // self.block_size
        if not self.prefix_caching or full <= sequence.num_registered:
            return
        self._extend_digests(sequence, full)
        for index in range(sequence.num_registered, full):
            self.pool.register(sequence.block_table[index], sequence.digests[index])
        sequence.num_registered = full

    def free(self, sequence: Sequence, *, forget: bool = False) -> None:
        """Take all blocks back. The last go first, so that a prefix outlives what follows it.

        forget: the content is not to be trusted (NaN or Inf came out of it) and must not reach another request.
        """
        if self.states is not None:
            self.states.free(sequence, forget=forget)
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
