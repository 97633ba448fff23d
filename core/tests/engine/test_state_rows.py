"""Rows of layers' states by themselves: who gets which, which checkpoints stay, and how many rows there are."""

from types import SimpleNamespace

import pytest
import torch

from bestiary.api.config import CacheConfig, SchedulerConfig
from bestiary.api.errors import UsageError
from bestiary.api.sampling import SamplingParams
from bestiary.engine.kv_cache import KVCacheManager
from bestiary.engine.memory import num_kv_blocks, num_state_rows
from bestiary.engine.sequence import Sequence, Status
from bestiary.nn.attention.backend import KVCacheSpec

PROMPT = range(10, 19)  # two blocks of four and one token
LONG = SamplingParams(max_tokens=50)


def manager(rows=7, **options):
    return KVCacheManager(64, 4, state_rows=rows, **options)


def sequence(tokens=PROMPT, sampling=LONG, name="a"):
    return Sequence(name, tokens, sampling)


def admit(kv, s):
    kv.match_prefix(s)
    assert kv.allocate(s, s.num_computed + kv.piece(s, s.total - s.num_computed))
    s.status = Status.RUNNING
    return s


def step(kv, s, again=False):
    """Compute a sequence's next piece; it draws token 5 after its newest one. Returns the rows (read, written)."""
    count = kv.piece(s, s.total - s.num_computed)
    assert kv.allocate(s, s.num_computed + count)
    rows = s.state_read, s.state_write
    kv.computed(s, count, again=again)
    if s.num_computed == s.total:
        s.token_ids.append(5)
    return rows


def end(kv, s, forget=False):
    s.status = Status.FINISHED
    kv.free(s, forget=forget)


def test_a_prompt_stops_at_its_last_full_block_and_the_two_rows_change_places():
    kv = manager(prefix_caching=False)
    s = admit(kv, sequence())
    rows = [step(kv, s) for _ in range(4)]
    assert rows == [(-1, rows[0][1]), (rows[0][1], rows[1][1]), (rows[1][1], rows[0][1]), (rows[0][1], rows[1][1])]
    assert s.total == 13
    kv = manager()
    s = admit(kv, sequence())
    assert [kv.piece(s, 9), kv.piece(s, 7), kv.piece(s, 3)] == [8, 4, 3]
    step(kv, s)
    assert (s.num_computed, kv.states.pool.num_cached) == (8, 1)


def test_the_row_of_a_checkpoint_is_not_written_any_more():
    kv = manager()
    first = admit(kv, sequence())
    _, kept = step(kv, first)
    others = [admit(kv, sequence([*PROMPT, 3], name=name)) for name in "bc"]
    assert [s.num_computed for s in others] == [8, 8]
    rows = [step(kv, s) for s in (first, *others)]
    assert [read for read, _ in rows] == [kept] * 3
    assert len({written for _, written in rows} | {kept}) == 4


def test_what_must_be_computed_again_is_read_from_where_it_was_read():
    kv = manager()
    s = admit(kv, sequence())
    before = step(kv, s, again=True)
    assert s.num_computed == 0 and step(kv, s) == before
    one = step(kv, s, again=True)
    assert s.num_computed == 8 and step(kv, s) == one


def test_the_newest_token_of_an_answer_with_a_form_goes_by_itself():
    kv = manager()
    s = admit(kv, sequence(range(10, 22), SamplingParams(max_tokens=50, structured_outputs={"regex": "a"})))
    counts = []
    while s.total == 12:
        before = s.num_computed
        step(kv, s)
        counts.append(s.num_computed - before)
    assert counts == [8, 3, 1]


def test_of_an_answer_the_newest_checkpoint_is_kept_beside_those_of_its_prompt():
    kv = manager(rows=16)
    s = admit(kv, sequence())
    while s.num_computed < 41:
        step(kv, s)
    end(kv, s)
    assert [index for index, digest in enumerate(s.digests) if kv.states.has(digest)] == [1, 9]
    longest = sequence(s.token_ids, name="b")
    assert kv.match_prefix(longest) == 40
    kv.free(longest)
    other = sequence([*s.token_ids[:30], 1], name="c")
    assert kv.match_prefix(other) == 8, "blocks without a checkpoint at their end are of no use"


def test_the_least_recently_used_checkpoint_goes_first():
    kv = manager(rows=4)
    for name, tokens in (("a", PROMPT), ("b", range(30, 39))):
        end(kv, run_through(kv, sequence(tokens, name=name)))
    again = sequence(name="c")
    assert kv.match_prefix(again) == 8
    kv.free(again)
    end(kv, run_through(kv, sequence(range(50, 59), name="d")))
    found = [kv.match_prefix(sequence(tokens, name="e")) for tokens in (range(30, 39), PROMPT)]
    assert found == [0, 8]


def run_through(kv, s):
    admit(kv, s)
    step(kv, s)
    step(kv, s)
    return s


def test_what_is_forgotten_or_cleared_is_not_found():
    kv = manager()
    end(kv, run_through(kv, sequence()), forget=True)
    assert kv.match_prefix(sequence(name="b")) == 0
    end(kv, run_through(kv, sequence(name="c")))
    kv.clear_prefix_cache()
    assert kv.states.pool.num_cached == 0
    assert kv.match_prefix(sequence(name="d")) == 0


def test_a_checkpoint_whose_block_is_gone_is_right_again_when_the_block_comes_back():
    kv = manager()
    end(kv, run_through(kv, sequence()))
    for block in range(64):
        kv.pool.forget(block)
    assert kv.states.pool.num_cached == 1
    assert kv.match_prefix(sequence(name="b")) == 0
    s = admit(kv, sequence(name="b"))
    assert kv.piece(s, 9) == 9, "a checkpoint stands there already"
    step(kv, s)
    assert kv.match_prefix(sequence(name="c")) == 8


def test_a_sequence_without_two_free_rows_waits_and_one_that_lacks_its_second_is_told():
    kv = manager(rows=5)
    s = admit(kv, sequence())
    step(kv, s)
    other = admit(kv, sequence([*PROMPT, 3], name="b"))  # holds the checkpoint that is `s`'s state, and two rows
    third = sequence(range(40, 44), name="c")
    assert not kv.fits(third, 4) and not kv.allocate(third, 4)
    step(kv, s)
    assert (kv.states.pool.num_free, s.state_write >= 0) == (0, True)
    kv = manager(rows=4)
    s = admit(kv, sequence())
    step(kv, s)
    taken = [kv.states.pool.take() for _ in range(kv.states.pool.num_free)]
    kv.states.pool.share(s.state_read)
    step(kv, s)
    assert not kv.has_room(s, s.num_computed + 1) and not kv.allocate(s, s.num_computed + 1)
    kv.states.pool.release(taken[0])
    assert kv.allocate(s, s.num_computed + 1) and kv.has_room(s, s.num_computed + 1)
    assert other.state_write >= 0


SPEC = KVCacheSpec(num_kv_heads=1, head_size=8, dtype=torch.float32)  # 64 bytes a token


def config(memory_bytes=None, num_blocks=None, caching=True):
    return SimpleNamespace(
        cache_config=CacheConfig(
            block_size=16, memory_bytes=memory_bytes, num_blocks=num_blocks, enable_prefix_caching=caching
        ),
        scheduler_config=SchedulerConfig(max_num_seqs=8),
        model_config=SimpleNamespace(max_model_len=64),
        device_config=SimpleNamespace(device="cpu"),
    )


@pytest.mark.parametrize(
    ("specs", "options", "rows"),
    [
        ([], {"memory_bytes": 2**30}, 33),
        ([], {"memory_bytes": 2**30, "caching": False}, 16),
        ([], {"memory_bytes": 10_000}, 10),
        ([SPEC], {"memory_bytes": 40_000}, 20),
        ([SPEC], {"memory_bytes": 4 * 1024 + 3000}, 3),
        ([SPEC], {"memory_bytes": 40_000, "num_blocks": 30}, 9),
        ([SPEC], {}, 33),
    ],
)
def test_rows_and_blocks_share_the_memory(specs, options, rows):
    made = config(**options)
    assert num_state_rows(1000, specs, made, free=2**34) == rows
    blocks = num_kv_blocks(specs, made, free=2**34, state_bytes=rows * 1000)
    budget = options.get("memory_bytes", 2**33)
    assert blocks >= 4
    assert not specs or blocks * 1024 + rows * 1000 <= budget


@pytest.mark.parametrize(("specs", "memory", "needed"), [([], 2999, 3000), ([SPEC], 7095, 7096)])
def test_memory_without_room_for_one_sequence_is_refused(specs, memory, needed):
    with pytest.raises(UsageError, match="no memory for layers' states") as raised:
        num_state_rows(1000, specs, config(memory))
    assert raised.value.limit == f"at least {needed}, with the KV cache"


def test_a_rank_without_such_layers_wants_as_many_rows_as_could_be_used():
    assert num_state_rows(0, [SPEC], config(10)) == 33
