"""Which states are kept: where steps end, which checkpoints stay, and which are never found again."""

from bestiary.api.sampling import SamplingParams
from bestiary.engine.kv_cache import KVCacheManager
from bestiary.engine.sequence import Sequence
from bestiary.engine.state_rows import StateRows

PROMPT = range(10, 19)  # two blocks of four and one token
LONG = SamplingParams(max_tokens=50)


def manager(rows=16):
    return KVCacheManager(64, 4, states=StateRows(rows))


def sequence(tokens=PROMPT, sampling=LONG, name="a"):
    return Sequence(name, tokens, sampling)


def step(kv, s):
    """Compute a sequence's next piece; it draws token 5 after its newest one. Returns the piece's length."""
    count = kv.piece(s, s.total - s.num_computed)
    assert kv.allocate(s, s.num_computed + count)
    kv.states.schedule(s)
    s.num_computed += count
    kv.register_computed(s)
    kv.advance_state(s)
    if s.num_computed == s.total:
        s.token_ids.append(5)
    return count


def run(kv, s, tokens):
    kv.match_prefix(s)
    while s.num_computed < tokens:
        step(kv, s)
    return s


def test_the_newest_token_of_an_answer_with_a_form_goes_by_itself():
    kv = manager()
    s = sequence(range(10, 22), SamplingParams(max_tokens=50, structured_outputs={"regex": "a"}))
    assert [step(kv, s) for _ in range(3)] == [8, 3, 1]


def test_of_an_answer_the_newest_checkpoint_is_kept_beside_those_of_its_prompt():
    kv = manager()
    s = run(kv, sequence(), 41)
    kv.free(s)
    assert [index for index, digest in enumerate(s.digests) if kv.states.has(digest)] == [1, 9]
    assert kv.match_prefix(sequence(s.token_ids, name="b")) == 40
    assert kv.match_prefix(sequence([*s.token_ids[:30], 1], name="c")) == 8, "blocks without a checkpoint are no use"


def test_a_state_that_is_not_trusted_is_not_found_even_where_its_blocks_are_gone_or_anothers():
    for lose in (lambda kv: None, lambda kv: [kv.pool.forget(block) for block in range(64)]):
        kv = manager()
        s = run(kv, sequence(), 9)
        lose(kv)
        kv.free(s, forget=True)
        assert kv.states.num_checkpoints == 0


def test_a_checkpoint_whose_blocks_are_gone_is_right_again_when_they_come_back():
    kv = manager()
    kv.free(run(kv, sequence(), 9))
    for block in range(64):
        kv.pool.forget(block)
    again = sequence(name="b")
    assert kv.match_prefix(again) == 0
    assert step(kv, again) == 9, "a checkpoint stands there already"
    assert kv.match_prefix(sequence(name="c")) == 8
