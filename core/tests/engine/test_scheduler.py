"""Scheduling rules one by one, and exactness along each axis: batch, chunk size, prefix cache, preemption."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

from bestiary.api.config import CacheConfig, SchedulerConfig
from bestiary.api.errors import EngineError, RequestError
from bestiary.api.sampling import SamplingParams
from bestiary.engine.plan import NewRequest, SampledToken, StepResult
from bestiary.engine.scheduler import Scheduler
from bestiary.engine.sequence import Sequence
from bestiary.testing.paged_model import PagedModel

EOS = (0,)
MODEL_LEN = 64


class Engine:
    """A scheduler and a paged model, stepped by hand; `tokens` and `ends` collect what came out."""

    def __init__(
        self,
        *,
        num_blocks=64,
        block_size=4,
        prefix_caching=True,
        max_model_len=MODEL_LEN,
        prompt_salt=None,
        **scheduler,
    ):
        cache = CacheConfig(block_size=block_size, enable_prefix_caching=prefix_caching)
        self.scheduler = Scheduler(SchedulerConfig(**scheduler), cache, max_model_len, num_blocks, prompt_salt)
        self.model = PagedModel(num_blocks, block_size, vocab_size=101, prompt_salt=prompt_salt)
        self.max_model_len = max_model_len
        self.tokens: dict[str, list[int]] = {}
        self.ends: dict[str, tuple] = {}
        self.prompt_logprobs: dict[str, list] = {}

    def add(self, name, prompt, *, max_tokens=8, leader=None, **options):
        own = {k: options.pop(k) for k in ("seed", "priority", "lora_name", "cache_salt") if k in options}
        sampling = SamplingParams(max_tokens=max_tokens, **options)
        sequence = Sequence(name, prompt, sampling, eos_token_ids=EOS, leader=leader, **own)
        self.scheduler.add(sequence)
        self.tokens[name] = []
        return sequence

    def step(self):
        plan = self.scheduler.schedule()
        self.take(self.scheduler.update(plan, self.model.execute(plan)))
        return plan

    def take(self, updates):
        for update in updates:
            if update.token_id is not None:
                self.tokens[update.request_id].append(update.token_id)
            if update.prompt_logprobs is not None:
                assert update.request_id not in self.prompt_logprobs
                self.prompt_logprobs[update.request_id] = update.prompt_logprobs
            if update.finish_reason is not None:
                assert update.request_id not in self.ends
                self.ends[update.request_id] = (update.finish_reason, update.stop_reason)

    def run(self):
        while self.scheduler.has_unfinished():
            self.step()
        usage = self.scheduler.stats().kv_cache
        assert usage.free_blocks == usage.num_blocks
        return self

    def check(self, *sequences):
        for s in sequences:
            request = NewRequest(s.request_id, s.prompt_token_ids, s.sampling, s.seed, s.eos_token_ids, s.lora_name)
            answer = self.model.generate_alone(request, self.max_model_len)
            assert self.tokens[s.request_id] == answer.token_ids
            assert self.ends[s.request_id] == (answer.finish_reason, answer.stop_reason)
            assert self.prompt_logprobs.get(s.request_id) == answer.prompt_logprobs


def spans(plan):
    return [(item.request_id, item.start, item.count, item.samples) for item in plan.items]


def drawing(engine, token_id, steps=1):
    """Steps in which every sampling request gets `token_id`; returns the last updates."""
    updates = []
    for _ in range(steps):
        plan = engine.scheduler.schedule()
        sampled = {item.request_id: SampledToken(token_id) for item in plan.items if item.samples}
        updates = engine.scheduler.update(plan, StepResult(plan.step, sampled))
    return updates


def prompts(count, seed=0, low=1, high=40):
    draw = random.Random(seed)
    return [[draw.randrange(1, 101) for _ in range(draw.randint(low, high))] for _ in range(count)]


# --- exactness ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_num_seqs", [1, 2, 5, 32])
def test_any_batch_gives_the_tokens_of_one_alone(max_num_seqs):
    engine = Engine(num_blocks=400, max_num_seqs=max_num_seqs)
    sequences = [engine.add(f"{i}", prompt, max_tokens=24) for i, prompt in enumerate(prompts(32))]
    engine.run().check(*sequences)
    assert engine.scheduler.stats().preemptions == 0


@pytest.mark.parametrize("block_size", [1, 8, 16])
def test_any_chunk_size_gives_the_same_tokens(block_size):
    prompt = prompts(1, low=40)[0]
    for budget in range(1, len(prompt) + 2):
        engine = Engine(num_blocks=64, block_size=block_size, max_num_batched_tokens=budget)
        sequence = engine.add("a", prompt, prompt_logprobs=1)
        plan = engine.step()
        assert spans(plan) == [("a", 0, min(budget, 40), budget >= 40)]
        engine.run().check(sequence)


@pytest.mark.parametrize("block_size", [1, 8, 16])
@pytest.mark.parametrize("shared", [0, 1, 7, 8, 15, 16, 17, 31, 32, 40])
def test_a_warm_prefix_cache_gives_the_same_tokens(block_size, shared):
    prompt = prompts(1, low=40)[0]
    engine = Engine(num_blocks=64, block_size=block_size)
    engine.check(engine.add("cold", prompt), *(engine.run() and ()))
    warm = engine.add("warm", [*prompt[:shared], *prompts(1, seed=9)[0]][:40])
    engine.run().check(warm)
    assert warm.cached_tokens == min(shared, len(warm.prompt_token_ids) - 1) // block_size * block_size
    usage = engine.scheduler.stats().kv_cache
    assert (usage.prefix_queries, usage.prefix_hits) == (40 + warm.num_prompt, warm.cached_tokens)


def test_an_evicted_prefix_is_computed_again():
    engine = Engine(num_blocks=12, block_size=4)
    prompt = prompts(1, low=40)[0]
    engine.add("a", prompt, max_tokens=1)
    engine.run()
    engine.add("b", prompts(1, seed=5, low=20, high=20)[0], max_tokens=1)  # evicts some of a's tail
    engine.run()
    again = engine.add("c", prompt)
    engine.run().check(again)
    assert 0 < again.cached_tokens < 36


@pytest.mark.parametrize("prefix_caching", [True, False])
@pytest.mark.parametrize("budget", [3, 2048])
def test_preemption_at_every_step_changes_no_token(prefix_caching, budget):
    engine = Engine(num_blocks=400, prefix_caching=prefix_caching, max_num_batched_tokens=budget)
    sequences = [
        engine.add(f"{i}", prompt, max_tokens=12, prompt_logprobs=0 if i % 2 else None)
        for i, prompt in enumerate(prompts(16, high=20))
    ]
    scheduler = engine.scheduler
    while scheduler.has_unfinished():
        engine.step()
        for victim in scheduler.roster.running[1:]:  # all but the first, so that somebody always gets on
            scheduler.roster.preempt(victim)
    engine.check(*sequences)
    assert scheduler.stats().preemptions >= 16


def test_a_pool_of_little_more_than_one_request_completes_thirty_two():
    longest = 48
    engine = Engine(num_blocks=round(1.2 * longest / 4), block_size=4, max_model_len=longest)
    draw = random.Random(1)
    sequences = [
        engine.add(f"{i}", prompt, max_tokens=draw.randint(8, longest - len(prompt)), ignore_eos=True)
        for i, prompt in enumerate(prompts(32, seed=3, high=30))
    ]
    engine.run().check(*sequences)
    assert engine.scheduler.stats().preemptions > 0


def test_the_same_calls_give_the_same_plans():
    plans = []
    for _ in range(2):
        engine = Engine(num_blocks=24, max_num_batched_tokens=16)
        for i, prompt in enumerate(prompts(12)):
            engine.add(f"{i}", prompt, priority=i % 3)
        run = []
        while engine.scheduler.has_unfinished():
            run.append(engine.step())
        plans.append(run)
    assert plans[0] == plans[1]


# --- how an answer ends -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "token", "expected"),
    [
        ({}, 0, ("stop", None)),
        ({"stop_token_ids": [0]}, 0, ("stop", None)),
        ({"ignore_eos": True}, 0, (None, None)),
        ({"ignore_eos": True, "stop_token_ids": [0]}, 0, ("stop", 0)),
        ({"stop_token_ids": [7]}, 7, ("stop", 7)),
        ({"stop_token_ids": [7]}, 8, (None, None)),
        ({"min_tokens": 2}, 0, (None, None)),
        ({"min_tokens": 2, "stop_token_ids": [7]}, 7, (None, None)),
        ({"min_tokens": 1}, 0, ("stop", None)),
        ({"max_tokens": 1}, 5, ("length", None)),
        ({"max_tokens": 1}, 0, ("stop", None)),
    ],
)
def test_the_first_token_ends_or_does_not(options, token, expected):
    engine = Engine()
    engine.add("a", [1, 2], **options)
    (update,) = drawing(engine, token)
    assert (update.finish_reason, update.stop_reason) == expected
    assert update.token_id == token
    assert engine.scheduler.has_unfinished() == (expected[0] is None)


@pytest.mark.parametrize(("max_tokens", "steps"), [(5, 5), (None, 10)])
def test_length_is_max_tokens_or_the_context(max_tokens, steps):
    engine = Engine(max_model_len=13)
    engine.add("a", [1, 2, 3], max_tokens=max_tokens)
    assert drawing(engine, 9, steps - 1)[0].finish_reason is None
    assert drawing(engine, 9)[0].finish_reason == "length"


def test_a_token_that_could_not_be_drawn_ends_one_request_only():
    engine = Engine()
    engine.model.numerical_at["bad"] = 2
    good, bad = engine.add("good", [1] * 9), engine.add("bad", [2] * 9)
    engine.run().check(good, bad)
    assert engine.ends["bad"] == ("error", None)
    follower = engine.add("after", [2] * 9)
    engine.run().check(follower)
    assert follower.cached_tokens == 0, "what may hold NaN is not shared"


def test_a_missing_token_ends_one_request_only():
    engine = Engine()
    engine.add("a", [1])
    engine.add("b", [1], prompt_logprobs=0)
    engine.add("c", [1, 2], prompt_logprobs=0)
    plan = engine.scheduler.schedule()
    updates = engine.scheduler.update(plan, StepResult(plan.step, {"b": SampledToken(4), "c": SampledToken(4)}))
    assert [(u.request_id, u.token_id, u.finish_reason) for u in updates] == [
        ("a", None, "error"),
        ("b", 4, None),
        ("c", None, "error"),
    ]
    assert updates[0].error == "no token was drawn"
    assert updates[1].prompt_logprobs == [None]


def test_aborting_while_waiting_running_and_in_flight():
    engine = Engine(max_num_seqs=1)
    engine.add("running", [1] * 8)
    engine.add("waiting", [1] * 8)
    engine.step()
    assert engine.scheduler.abort("waiting").finish_reason == "abort"
    plan = engine.scheduler.schedule()
    assert engine.scheduler.abort("running").finish_reason == "abort"
    again = engine.add("running", [3] * 8)
    assert engine.scheduler.update(plan, engine.model.execute(plan)) == [], "the old one's token is not the new one's"
    assert engine.scheduler.abort("nobody") is None
    plan = engine.step()
    assert (plan.finished, [new.request_id for new in plan.new]) == (("running",), ["running"])
    engine.run().check(again)


def test_a_stop_string_ends_it_with_that_reason():
    engine = Engine()
    engine.add("a", [1])
    engine.step()
    update = engine.scheduler.finish("a", "stop", "\n\n")
    assert (update.finish_reason, update.stop_reason, update.token_id) == ("stop", "\n\n", None)
    assert not engine.scheduler.has_unfinished()
    assert engine.scheduler.has_unreported()
    assert engine.step().finished == ("a",)
    assert not engine.scheduler.has_unreported()


# --- admission ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "options", "code", "words"),
    [
        (0, {}, "EMPTY_PROMPT", ()),
        (64, {"max_tokens": None}, "CONTEXT_LENGTH_EXCEEDED", ("64", "by at least 1 token")),
        (65, {"max_tokens": 1}, "CONTEXT_LENGTH_EXCEEDED", ("66", "64", "by at least 2 token")),
        (60, {"max_tokens": 5}, "CONTEXT_LENGTH_EXCEEDED", ("65", "64", "max_tokens to at most 4")),
        (
            60,
            {"max_tokens": None, "min_tokens": 5},
            "CONTEXT_LENGTH_EXCEEDED",
            ("min_tokens and max_tokens to at most 4",),
        ),
    ],
)
def test_what_the_context_cannot_hold_is_refused_with_the_numbers(prompt, options, code, words):
    engine = Engine()
    with pytest.raises(RequestError) as caught:
        engine.add("a", [1] * prompt, **options)
    assert caught.value.error_code == code
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert not engine.scheduler.has_unfinished()


@pytest.mark.parametrize(("prompt", "max_tokens"), [(63, 1), (63, None), (60, 4), (1, 63)])
def test_what_just_fits_the_context_runs(prompt, max_tokens):
    engine = Engine()
    sequence = engine.add("a", [1] * prompt, max_tokens=max_tokens, ignore_eos=True)
    engine.run().check(sequence)
    assert len(engine.tokens["a"]) == (max_tokens or 64 - prompt)


def test_what_the_pool_cannot_hold_is_refused_and_what_just_fits_runs():
    engine = Engine(num_blocks=3, block_size=4)
    with pytest.raises(RequestError, match="max_tokens to at most 3") as caught:
        engine.add("a", [1] * 10, max_tokens=4)
    assert caught.value.error_code == "KV_CACHE_EXCEEDED"
    sequence = engine.add("a", [1] * 10, max_tokens=3, ignore_eos=True)
    engine.run().check(sequence)


def test_a_prompt_longer_than_a_step_is_refused_without_chunking():
    engine = Engine(max_num_batched_tokens=8, enable_chunked_prefill=False)
    with pytest.raises(RequestError, match="at least 9") as caught:
        engine.add("a", [1] * 9)
    assert caught.value.error_code == "PROMPT_EXCEEDS_STEP"
    engine.add("a", [1] * 8)
    assert spans(engine.step()) == [("a", 0, 8, True)]


def test_a_full_queue_and_a_used_id_are_refused_and_a_group_is_all_or_none():
    engine = Engine(max_queue=2)
    engine.add("a", [1])
    with pytest.raises(RequestError) as caught:
        engine.add("a", [1])
    assert caught.value.error_code == "DUPLICATE_REQUEST"
    with pytest.raises(RequestError) as caught:
        engine.scheduler.add(*[Sequence(name, [1], SamplingParams()) for name in "bc"])
    assert caught.value.error_code == "QUEUE_FULL"
    engine.step()
    with pytest.raises(RequestError):
        engine.scheduler.add(Sequence("b", [1], SamplingParams()), Sequence("c", [], SamplingParams()))
    with pytest.raises(RequestError):
        engine.scheduler.add(*[Sequence("b", [1], SamplingParams())] * 2)
    assert engine.scheduler.stats().waiting == 0


def test_misuse_is_an_error_of_the_engine():
    engine = Engine()
    with pytest.raises(EngineError):
        engine.scheduler.add(Sequence("a", [1], SamplingParams(n=2)))
    sequence = engine.add("a", [1])
    with pytest.raises(EngineError):
        engine.scheduler.add(sequence)
    plan = engine.scheduler.schedule()
    with pytest.raises(EngineError):
        engine.scheduler.schedule()
    with pytest.raises(EngineError):
        engine.scheduler.update(plan, StepResult(plan.step + 1, {}))
    engine.scheduler.abandon(plan)
    with pytest.raises(EngineError):
        engine.scheduler.abandon(plan)


# --- order and budget ---------------------------------------------------------------------------------------------


def test_running_ones_come_first_and_a_prompt_fills_what_is_left():
    engine = Engine(max_num_batched_tokens=8)
    engine.add("a", [1] * 4)
    engine.step()
    engine.add("b", [2] * 10)
    assert spans(engine.step()) == [("a", 4, 1, True), ("b", 0, 7, False)]
    assert spans(engine.step()) == [("a", 5, 1, True), ("b", 7, 3, True)]
    assert spans(engine.step()) == [("a", 6, 1, True), ("b", 10, 1, True)]


def test_without_chunking_a_prompt_waits_for_a_step_with_room():
    engine = Engine(max_num_batched_tokens=8, enable_chunked_prefill=False)
    for name in "ab":
        engine.add(name, [1] * 5, max_tokens=2, ignore_eos=True)
    engine.add("c", [1] * 1)
    assert spans(engine.step()) == [("a", 0, 5, True)], "c does not overtake b"
    assert [span[0] for span in spans(engine.step())] == ["a", "b", "c"]


def test_waiting_ones_come_by_priority_then_arrival():
    engine = Engine(max_num_seqs=1)
    for name, priority in (("a", 1), ("b", 0), ("c", 1), ("d", 0)):
        engine.add(name, [1], max_tokens=1, priority=priority)
    engine.run()
    assert list(engine.ends) == ["b", "d", "a", "c"]


def test_a_better_priority_takes_the_place_of_a_worse_one_but_not_of_an_equal():
    engine = Engine(max_num_seqs=1)
    low = engine.add("low", [1] * 4, priority=1, ignore_eos=True)
    engine.step()
    engine.add("equal", [1], priority=1)
    assert [span[0] for span in spans(engine.step())] == ["low"]
    engine.add("high", [2], priority=0, max_tokens=1)
    assert spans(engine.step()) == [("high", 0, 1, True)]
    assert low.preemptions == 1
    plan = engine.step()
    assert [(item.request_id, item.start + item.count, item.samples) for item in plan.items] == [("low", 6, True)]
    assert plan.new == (), "the executor knows its tokens already"
    engine.run().check(low)


def test_a_better_priority_takes_blocks_from_the_worst_ranked_only():
    engine = Engine(num_blocks=6, block_size=4)
    first = engine.add("first", [1] * 5, priority=1)
    last = engine.add("last", [3] * 5, priority=1)
    engine.step()
    engine.add("high", [2] * 9, priority=0)
    assert [span[0] for span in spans(engine.step())] == ["high", "first"]
    assert (first.preemptions, last.preemptions) == (0, 1)


def test_the_latest_of_the_worst_priority_is_preempted():
    engine = Engine(num_blocks=6, block_size=2, prefix_caching=False)
    sequences = [engine.add(name, [1, 2, 3], priority=p, ignore_eos=True) for name, p in (("a", 1), ("b", 0), ("c", 1))]
    engine.step()
    engine.step()
    engine.step()
    assert [s.preemptions for s in sequences] == [0, 0, 1]
    engine.run().check(*sequences)


# --- sharing ------------------------------------------------------------------------------------------------------


def test_siblings_share_the_prompt_they_wait_for():
    engine = Engine(num_blocks=64, block_size=4)
    leader = engine.add("0", [5] * 18, ignore_eos=True)
    children = [engine.add(f"{i}", [5] * 18, leader=leader, seed=i, ignore_eos=True) for i in (1, 2)]
    assert spans(engine.step()) == [("0", 0, 18, True)]
    assert spans(engine.step())[1:] == [("1", 16, 2, True), ("2", 16, 2, True)]
    assert {s.block_ids[:4] for s in (leader, *children)} == {leader.block_ids[:4]}
    assert engine.scheduler.stats().kv_cache.used_blocks == 4 + 3
    engine.run().check(leader, *children)
    assert len({tuple(tokens) for tokens in engine.tokens.values()}) == 3, "their own seeds"


@pytest.mark.parametrize("end", ["abort", "preempt", "nothing to share"])
def test_siblings_do_not_wait_in_vain(end):
    engine = Engine(max_num_batched_tokens=4, prefix_caching=end != "nothing to share")
    leader = engine.add("0", [5] * 12)
    child = engine.add("1", [5] * 12, leader=leader)
    engine.step()
    if end == "abort":
        engine.scheduler.abort("0")
    elif end == "preempt":
        engine.scheduler.roster.preempt(leader)
    engine.run().check(child)


def test_another_salt_finds_nothing():
    engine = Engine()
    for salt in ("a", "b", None):
        assert engine.add(f"{salt}", [3] * 20, cache_salt=salt)
        engine.run()
    assert engine.scheduler.stats().kv_cache.prefix_hits == 0
    again = engine.add("again", [3] * 20, cache_salt="a")
    engine.run()
    assert again.cached_tokens == 16


def test_prompts_whose_lengths_the_model_tells_apart_share_no_block():
    engine = Engine(prompt_salt=lambda length: "long" if length > 24 else "short")
    short, long = engine.add("short", [3] * 24), engine.add("long", [3] * 30)
    engine.step()
    assert not set(short.block_table) & set(long.block_table)
    engine.run()
    others = [engine.add("longer", [3] * 31), engine.add("shorter", [3] * 20)]
    engine.run().check(short, long, *others)
    assert [each.cached_tokens for each in (short, long, *others)] == [0, 0, 28, 16]


def test_clearing_the_prefix_cache_in_the_middle_changes_no_token():
    engine = Engine()
    one = engine.add("one", [3] * 20)
    engine.step()
    engine.scheduler.clear_prefix_cache()
    other = engine.add("other", [3] * 20)
    engine.run().check(one, other)
    assert other.cached_tokens == 0


# --- steps that are lost ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reached", [True, False])
def test_a_lost_step_is_said_again(reached):
    engine = Engine()
    gone, stays = engine.add("gone", [1] * 5), engine.add("stays", [2] * 5)
    engine.step()
    engine.scheduler.abort("gone")
    fresh = engine.add("fresh", [3] * 5)
    plan = engine.scheduler.schedule()
    if reached:
        engine.model.execute(plan, lose=True)
    engine.scheduler.abandon(plan)
    again = engine.scheduler.schedule()
    assert (again.items, again.new) == (plan.items, plan.new)
    assert set(plan.finished) <= set(again.finished)
    assert again.step > plan.step
    engine.take(engine.scheduler.update(again, engine.model.execute(again)))
    engine.run().check(stays, fresh)
    assert gone.request_id not in engine.model.known


def test_without_chunking_a_prompt_whose_step_was_lost_still_comes_whole():
    engine = Engine(max_num_batched_tokens=8, enable_chunked_prefill=False)
    late = engine.add("late", [1] * 5, priority=1)
    engine.scheduler.abandon(engine.scheduler.schedule())
    first = engine.add("first", [2] * 4)
    assert spans(engine.step()) == [("first", 0, 4, True)]
    assert spans(engine.step()) == [("first", 4, 1, True), ("late", 0, 5, True)]
    engine.run().check(first, late)


def test_without_chunking_what_was_preempted_begins_with_its_whole_prompt():
    """Even where it has become longer than a step, and others take a part of the step."""
    engine = Engine(
        num_blocks=12, block_size=4, prefix_caching=False, max_num_batched_tokens=8, enable_chunked_prefill=False
    )
    long = engine.add("long", [1] * 7, max_tokens=20, priority=1, ignore_eos=True)
    for _ in range(6):
        engine.step()
    short = [engine.add(f"{i}", [2 + i], max_tokens=4 + 8 * (i < 3), ignore_eos=True) for i in range(6)]
    begun = []
    while engine.scheduler.has_unfinished():
        begun += [item.count for item in engine.step().items if (item.request_id, item.start) == ("long", 0)]
        if engine.tokens["2"] and not long.preemptions:
            engine.scheduler.roster.preempt(long)
    engine.check(long, *short)
    assert begun
    assert 7 <= min(begun) <= max(begun) <= 8


def test_no_torch_is_imported():
    code = "import sys, bestiary.engine.scheduler; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
