"""Requests that want a vector, as the scheduler sees them: one update each, whatever the schedule, and its limits."""

import random

import pytest

from bestiary.api.config import CacheConfig, SchedulerConfig
from bestiary.api.errors import RequestError, UsageError
from bestiary.api.pooling import PoolerConfig, PoolingParams
from bestiary.api.sampling import SamplingParams
from bestiary.engine.admission import Limits
from bestiary.engine.checks import RequestChecks
from bestiary.engine.parallel.messages import AddRequest, Drawn, Tick, decode_drawn, decode_tick, encode
from bestiary.engine.plan import NewRequest, PooledVector, ScheduledItem, StepPlan, StepResult
from bestiary.engine.pooling import PoolingOffer
from bestiary.engine.process.messages import EngineStats, Stepped, decode_from_engine
from bestiary.engine.scheduler import Scheduler
from bestiary.engine.sequence import Sequence, SequenceUpdate
from bestiary.testing.paged_model import PagedModel

NOTHING_DRAWN = SamplingParams(max_tokens=1)


class Engine:
    """A scheduler and a paged model; `ends` collects the one update of each request."""

    def __init__(self, *, num_blocks=40, depth=1, numerical_at=None, **scheduler):
        cache = CacheConfig(block_size=4)
        self.scheduler = Scheduler(SchedulerConfig(**scheduler), cache, 64, num_blocks, None, depth)
        self.model = PagedModel(num_blocks, 4, numerical_at=numerical_at)
        self.ends, self.want = {}, {}

    def add(self, name, prompt, **options):
        pooling = PoolingParams()
        self.scheduler.add(Sequence(name, prompt, NOTHING_DRAWN, pooling=pooling, **options))
        self.want[name] = self.model.pool_alone(NewRequest(name, tuple(prompt), NOTHING_DRAWN, 0, pooling=pooling))

    def step(self, *, lose=False):
        plan = self.scheduler.schedule()
        result = self.model.execute(plan, lose=lose)
        if lose:
            self.scheduler.abandon(plan)
            return
        for update in self.scheduler.update(plan, result):
            assert update.request_id not in self.ends
            self.ends[update.request_id] = update

    def run(self):
        while self.scheduler.has_unfinished():
            self.step()
        usage = self.scheduler.stats().kv_cache
        assert usage.free_blocks == usage.num_blocks
        return self


@pytest.mark.parametrize("budget", [1, 5, 16, 1000])
@pytest.mark.parametrize("num_blocks", [17, 200])
def test_one_update_with_the_right_vector_whatever_the_schedule(budget, num_blocks):
    draw = random.Random(budget)
    engine = Engine(num_blocks=num_blocks, max_num_batched_tokens=budget, max_num_seqs=6)
    for number in range(20):
        prompt = [draw.choice((5, 6)) for _ in range(draw.randint(1, 64))]
        engine.add(str(number), prompt, priority=draw.randint(0, 2))
        for _ in range(draw.randint(0, 3)):
            engine.step(lose=draw.random() < 0.3)
    engine.run()
    assert {name: update.pooled for name, update in engine.ends.items()} == engine.want
    assert {update.finish_reason for update in engine.ends.values()} == {"stop"}
    assert all(update.token_id is None and update.error is None for update in engine.ends.values())
    if (num_blocks, budget) == (17, 16):
        assert engine.scheduler.stats().preemptions > 0


def test_a_prompt_that_was_pooled_before_is_found_in_the_prefix_cache():
    engine = Engine()
    engine.add("a", [7] * 30)
    engine.run()
    engine.add("b", [7] * 30)
    engine.run()
    assert [engine.ends[name].cached_tokens for name in "ab"] == [0, 28]
    assert engine.ends["b"].pooled == engine.want["b"]


def test_a_vector_that_is_none_ends_its_request_alone():
    engine = Engine(numerical_at={"b": 0})
    for name in "abc":
        engine.add(name, [3] * 9)
    engine.run()
    assert {name: (update.finish_reason, update.error) for name, update in engine.ends.items()} == {
        "a": ("stop", None), "b": ("error", "numerical"), "c": ("stop", None),
    }  # fmt: skip
    assert engine.ends["b"].pooled is None


def test_a_result_without_its_vector_is_an_error():
    engine = Engine()
    engine.add("a", [3, 4])
    plan = engine.scheduler.schedule()
    (update,) = engine.scheduler.update(plan, StepResult(plan.step, {}))
    assert (update.finish_reason, update.error) == ("error", "no vector was made")


@pytest.mark.parametrize(
    ("length", "code"), [(64, None), (65, "CONTEXT_LENGTH_EXCEEDED"), (0, "EMPTY_PROMPT"), (41, "KV_CACHE_EXCEEDED")]
)
def test_a_prompt_may_fill_the_context_and_no_more(length, code):
    limits = Limits(max_model_len=64, cache_tokens=40 if length == 41 else 64, max_prompt=None)
    checks = RequestChecks(90, frozenset(), limits, PoolingOffer(("embed",), 8))
    if code is None:
        checks.check([1] * length, PoolingParams())
        return
    with pytest.raises(RequestError) as caught:
        checks.check([1] * length, PoolingParams())
    assert caught.value.error_code == code
    assert "generate" not in str(caught.value)


@pytest.mark.parametrize(
    ("offer", "params", "code"),
    [
        (None, PoolingParams(), "WRONG_RUNNER"),
        (PoolingOffer(("embed",), 8), SamplingParams(), "WRONG_RUNNER"),
        (PoolingOffer(("embed",), 8), PoolingParams(task="classify"), "TASK_UNSUPPORTED"),
        (PoolingOffer(("classify",)), PoolingParams(task="embed"), "TASK_UNSUPPORTED"),
        (PoolingOffer(("embed",), 8), PoolingParams(dimensions=9), "BAD_REQUEST"),
        (PoolingOffer(("embed",)), PoolingParams(dimensions=1), "BAD_REQUEST"),
        (PoolingOffer(("classify",), 8), PoolingParams(dimensions=1), "BAD_REQUEST"),
        (PoolingOffer(("embed", "classify"), 8), PoolingParams(dimensions=8), None),
        (PoolingOffer(("embed", "classify"), 8), PoolingParams(task="classify"), None),
        (None, SamplingParams(), None),
    ],
)
def test_what_a_model_cannot_do_is_refused(offer, params, code):
    checks = RequestChecks(90, frozenset(), Limits(64, 64, None), offer)
    if code is None:
        checks.check([1], params)
        return
    with pytest.raises(RequestError) as caught:
        checks.check([1], params)
    assert caught.value.error_code == code


@pytest.mark.parametrize(
    ("field", "value"),
    [("dimensions", 0), ("dimensions", True), ("dimensions", 2.0), ("task", "score"), ("normalize", 1)],
)
def test_parameters_that_mean_nothing_are_refused(field, value):
    with pytest.raises(RequestError) as caught:
        PoolingParams(**{field: value})
    assert caught.value.field == field


def test_classes_have_no_dimensions():
    with pytest.raises(RequestError, match="dimensions"):
        PoolingParams(task="classify", dimensions=3)


def test_what_is_pooled_by_no_method_of_ours_is_refused():
    with pytest.raises(UsageError, match="no such pooling"):
        PoolerConfig(pooling_type="ALL")


def test_messages_arrive_as_they_were():
    params = PoolingParams(task="embed", normalize=False, dimensions=3)
    request = AddRequest.of("r", [1, 2], params, -1, "salt", "adapter")
    (event,) = decode_tick(encode(Tick((request,)))).events
    assert event == request
    assert event.params == params
    assert event.answers == ["r"]
    assert AddRequest.of("r", [1], NOTHING_DRAWN).params == NOTHING_DRAWN
    plan = StepPlan(4, (ScheduledItem("r", 0, 2, (0,), True),))
    result = StepResult(4, {}, pooled={"r": PooledVector(b"\x00\xff", None), "s": PooledVector(b"", "numerical")})
    assert decode_drawn(encode(Drawn.of(plan, result))).result == result
    stepped = Stepped((SequenceUpdate("r", finish_reason="stop", pooled=b"\x00\xff"),), EngineStats())
    assert decode_from_engine(encode(stepped)) == stepped
