"""Block bookkeeping: the pool against a plain model of it, digests against their documented bytes, prefix matching."""

from __future__ import annotations

import hashlib
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bestiary.api.errors import EngineError
from bestiary.api.sampling import SamplingParams
from bestiary.engine.kv_cache import BlockPool, KVCacheManager
from bestiary.engine.sequence import Sequence


def sequence(tokens, name="a", **options):
    return Sequence(name, tokens, options.pop("sampling", SamplingParams()), **options)


def compute(manager, seq, num_tokens=None):
    """Allocate and compute the first `num_tokens` tokens, all by default."""
    num_tokens = seq.total if num_tokens is None else num_tokens
    assert manager.allocate(seq, num_tokens)
    seq.num_computed = num_tokens
    manager.register_computed(seq)


def cached_length(manager, tokens, **options):
    """How many leading tokens a new request with these tokens would find."""
    seq = sequence(tokens, **options)
    length = manager.match_prefix(seq)
    manager.free(seq)
    return length


@settings(deadline=None, max_examples=100)
@given(
    st.integers(1, 6), st.lists(st.tuples(st.sampled_from(["take", "register", "release", "share"]), st.integers(0, 7)))
)
def test_the_pool_follows_a_plain_model(num_blocks, operations):
    pool = BlockPool(num_blocks)
    held = dict.fromkeys(range(num_blocks), 0)
    content: dict[int, bytes] = {}
    order = list(range(num_blocks))  # free blocks, the next to be handed out first
    for operation, number in operations:
        if operation == "take" and order:
            block = order.pop(0)
            content.pop(block, None)
            held[block] = 1
            assert pool.take() == block
        elif operation == "register":
            block, digest = number % num_blocks, bytes([number])
            if held[block] and block not in content:
                pool.register(block, digest)
                if digest not in content.values():
                    content[block] = digest
        elif operation == "release":
            block = number % num_blocks
            if held[block]:
                pool.release(block)
                held[block] -= 1
                if not held[block]:
                    order.insert(len(order) if block in content else 0, block)
        elif operation == "share":
            block = pool.find(bytes([number]))
            assert block == next((b for b, digest in content.items() if digest == bytes([number])), None)
            if block is not None:
                pool.share(block)
                if not held[block]:
                    order.remove(block)
                held[block] += 1
        assert pool.references == list(held.values())
        assert pool.num_free == len(order)
        assert [block for block in held if pool.is_free(block)] == sorted(order)
        assert pool.num_cached == len(content)


def test_a_block_released_too_often_is_an_error():
    pool = BlockPool(1)
    pool.release(pool.take())
    with pytest.raises(EngineError):
        pool.release(0)


def test_digests_are_what_the_documentation_says():
    manager = KVCacheManager(4, 2)
    seq = sequence([1, 2, 2**31 - 1, 4, 5], cache_salt="ü", lora_name=None)
    compute(manager, seq)
    root = hashlib.sha256(b"bestiary.kv/2" + b"\x01\x02\x00\x00\x00" + "ü".encode() + b"\x00\x00").digest()
    first = hashlib.sha256(root + struct.pack("<ii", 1, 2)).digest()
    second = hashlib.sha256(first + struct.pack("<ii", 2**31 - 1, 4)).digest()
    assert seq.digests == [first, second]
    assert [manager.pool.find(first), manager.pool.find(second)] == seq.block_table[:2]


@settings(deadline=None, max_examples=100)
@given(*[st.tuples(*[st.none() | st.text(max_size=3)] * 3, st.lists(st.integers(0, 3), min_size=2, max_size=6))] * 2)
def test_equal_digests_mean_equal_contexts(one, other):
    manager = KVCacheManager(8, 2)
    digests = []
    for salt, lora, prompt_salt, tokens in (one, other):
        seq = sequence(tokens, cache_salt=salt, lora_name=lora)
        seq.prompt_salt = prompt_salt
        compute(manager, seq)
        digests.append({d: (salt, lora, prompt_salt, tokens[: 2 * i + 2]) for i, d in enumerate(seq.digests)})
        manager.free(seq)
    for digest in digests[0].keys() & digests[1].keys():
        assert digests[0][digest] == digests[1][digest]
    for i in range(min(len(d) for d in digests)):
        if list(digests[0].values())[i] == list(digests[1].values())[i]:
            assert list(digests[0])[i] == list(digests[1])[i]


@pytest.mark.parametrize("block_size", [1, 3, 8, 16])
@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 15, 16, 17, 32, 33])
def test_all_but_the_last_token_may_match(block_size, length):
    manager = KVCacheManager(64, block_size)
    first = sequence(range(length))
    compute(manager, first)
    expected = (length - 1) // block_size * block_size
    assert cached_length(manager, range(length)) == expected, "held by another request"
    manager.free(first)
    assert cached_length(manager, range(length)) == expected, "free, but its content is still there"
    assert cached_length(manager, [*range(length), 99]) == length // block_size * block_size
    assert cached_length(manager, [99, *range(1, length + 1)]) == 0


def test_a_match_ends_at_the_first_difference():
    manager = KVCacheManager(64, 4)
    compute(manager, sequence(range(16)))
    assert cached_length(manager, [*range(9), 77, *range(10, 40)]) == 8


def test_what_was_not_computed_is_not_found():
    manager = KVCacheManager(16, 4)
    seq = sequence(range(16))
    assert manager.allocate(seq, 16)
    assert cached_length(manager, range(20)) == 0
    compute(manager, seq, 11)
    assert cached_length(manager, range(20)) == 8


def test_a_salt_and_an_adapter_keep_requests_apart():
    manager = KVCacheManager(64, 4)
    kinds = [{}, {"cache_salt": "a"}, {"cache_salt": "b"}, {"lora_name": "a"}, {"cache_salt": "", "lora_name": "a"}]
    for kind in kinds:
        assert cached_length(manager, range(9), **kind) == 0
        compute(manager, sequence(range(9), **kind))
        assert cached_length(manager, range(9), **kind) == 8


def test_prompt_logprobs_still_owed_are_computed():
    manager = KVCacheManager(16, 2)
    compute(manager, sequence(range(9)))
    seq = sequence(range(9), sampling=SamplingParams(prompt_logprobs=1))
    assert manager.match_prefix(seq) == 0
    assert seq.add_prompt_logprobs(0, 5, [{i: None} for i in range(1, 6)])
    assert manager.match_prefix(seq) == 4, "token 5's successor is owed, so token 5 is computed"
    manager.free(seq)
    seq.prompt_logprobs = None
    assert manager.match_prefix(seq) == 8


def test_the_least_recently_used_content_goes_first_and_tails_before_heads():
    manager = KVCacheManager(4, 1)
    old, young = sequence([1, 2]), sequence([3, 4], "b")
    compute(manager, old)
    compute(manager, young)
    manager.free(old)
    manager.free(young)
    assert cached_length(manager, [1, 2, 0]) == 2  # looked at: now the youngest
    for gone in (young.digests[1], young.digests[0], old.digests[1], old.digests[0]):
        assert manager.pool.find(gone) is not None
        manager.pool.take()
        assert manager.pool.find(gone) is None


def test_two_who_compute_the_same_keep_their_own_blocks():
    manager = KVCacheManager(4, 2)
    one, two = sequence([1, 2]), sequence([1, 2], "b")
    compute(manager, one)
    compute(manager, two)
    assert set(one.block_table).isdisjoint(two.block_table)
    assert manager.usage().cached_blocks == 1
    manager.free(one)
    manager.free(two)
    assert manager.usage().free_blocks == 4
    assert cached_length(manager, [1, 2, 3]) == 2


def test_no_room_changes_nothing():
    manager = KVCacheManager(2, 2)
    seq = sequence(range(9))
    compute(manager, seq, 3)
    before = (list(seq.block_table), manager.usage())
    assert not manager.allocate(seq, 5)
    assert not manager.fits(seq, 5)
    assert (seq.block_table, manager.usage()) == before
    assert manager.allocate(seq, 4)


def test_without_prefix_caching_nothing_is_shared():
    manager = KVCacheManager(8, 1, prefix_caching=False)
    compute(manager, sequence([1, 2, 3]))
    assert cached_length(manager, [1, 2, 3]) == 0
    assert manager.usage().cached_blocks == 0


def test_untrusted_content_is_forgotten():
    manager = KVCacheManager(8, 1)
    seq = sequence([1, 2, 3])
    compute(manager, seq)
    manager.free(seq, forget=True)
    assert cached_length(manager, [1, 2, 3]) == 0


def test_clearing_forgets_free_and_held_content():
    manager = KVCacheManager(8, 1)
    seq = sequence([1, 2, 3])
    compute(manager, seq)
    compute(manager, sequence([4, 5], "b"))
    manager.free(seq)
    manager.clear_prefix_cache()
    assert cached_length(manager, [1, 2, 3]) == cached_length(manager, [4, 5, 6]) == 0
