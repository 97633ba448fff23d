"""Steps planned before the tokens of the one before them are known: the same answers as when each is waited for."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bestiary import SamplingParams
from bestiary.api.config import CacheConfig, SchedulerConfig
from bestiary.engine.executor import UniprocExecutor
from bestiary.engine.lanes import Lanes, PlanFailed
from bestiary.engine.pending import Begun
from bestiary.engine.plan import NewRequest, SampledToken, StepPlan, StepResult
from bestiary.engine.request_state import RequestState
from bestiary.engine.scheduler import Scheduler
from bestiary.engine.sequence import Sequence

BLOCK = 4
STOP = 6


class LateExecutor:
    """Computes a plan when it is collected; a token that is not known then is one that it drew for the plan before."""

    def __init__(self) -> None:
        self.tokens: dict[str, list[int]] = {}
        self.cache: dict[int, tuple[str, int, int]] = {}  # slot → (request, position, token) written last
        self.launched: list = []
        self.most = 0
        self.fails_at: set[int] = set()

    def launch(self, plan, copy=0) -> None:
        self.launched.append(plan)
        self.most = max(self.most, len(self.launched))

    def collect(self, plan, copy=0):
        assert self.launched.pop(0) is plan
        if plan.step in self.fails_at:
            self.launched.clear()
            raise RuntimeError("the device failed")
        for name in plan.finished:
            self.tokens.pop(name, None)
        for new in plan.new:
            self.tokens[new.request_id] = list(new.prompt_token_ids)
        sampled = {}
        for item in plan.items:
            known = self.tokens[item.request_id]
            for position in range(item.start, item.start + item.count):
                slot = item.block_ids[position // BLOCK] * BLOCK + position % BLOCK
                self.cache[slot] = (item.request_id, position, known[position])
            context = [
                self.cache[item.block_ids[at // BLOCK] * BLOCK + at % BLOCK] for at in range(item.start + item.count)
            ]
            assert [(at, token) for _, at, token in context] == list(enumerate(known[: item.start + item.count]))
            if item.samples:
                token = sum(known) * 5 % 7
                known.append(token)
                sampled[item.request_id] = SampledToken(token)
        return StepResult(plan.step, sampled)


def engine_of(ahead: bool, running: int, blocks: int, budget: int, caching: bool) -> tuple[Lanes, LateExecutor]:
    config = SchedulerConfig(max_num_seqs=running, max_num_batched_tokens=budget)
    cache = CacheConfig(block_size=BLOCK, enable_prefix_caching=caching)
    return Lanes([Scheduler(config, cache, 64, blocks)], ahead), LateExecutor()


def sequence(name: str, prompt: list[int], answer: int, priority: int, stops: bool, plain: bool) -> Sequence:
    params = SamplingParams(
        max_tokens=answer, temperature=0.0, stop_token_ids=[STOP] if stops else [], presence_penalty=0 if plain else 1
    )
    return Sequence(name, prompt, params, priority=priority)


def run(program, ahead: bool, running: int, blocks: int, budget: int, caching: bool):
    lanes, executor = engine_of(ahead, running, blocks, budget, caching)
    answers: dict[str, list[int]] = {}
    ends: dict[str, str] = {}

    def step() -> None:
        for _, _, updates in lanes.step(executor):
            for update in updates:
                if update.token_id is not None:
                    answers.setdefault(update.request_id, []).append(update.token_id)
                if update.finish_reason is not None:
                    ends[update.request_id] = update.finish_reason

    for number, (prompt, answer, priority, stops, plain, steps, aborted) in enumerate(program):
        lanes.add(sequence(str(number), prompt, answer, priority, stops, plain))
        for _ in range(steps):
            step()
        if aborted is not None and lanes.finish(str(aborted), "abort") is not None:
            ends[str(aborted)] = "abort"
    for _ in range(600):
        if not lanes.has_unfinished():
            break
        step()
    assert not lanes.has_unfinished()
    if executor.launched:  # the last request was aborted while a step was in flight
        step()
    assert not executor.launched
    stats = lanes.stats().kv_cache
    assert stats.used_blocks == 0
    return answers, ends, executor


program = st.lists(
    st.tuples(
        st.lists(st.integers(0, 3), min_size=1, max_size=14),
        st.integers(1, 14),
        st.integers(0, 1),
        st.booleans(),
        st.booleans(),
        st.integers(0, 6),
        st.none(),
    ),
    min_size=1,
    max_size=7,
)


@settings(max_examples=150)
@given(program, st.integers(1, 4), st.integers(16, 22), st.integers(1, 20), st.booleans())
def test_the_same_answers_ahead(program, running, blocks, budget, caching) -> None:
    plainly = run(program, False, running, blocks, budget, caching)
    ahead = run(program, True, running, blocks, budget, caching)
    assert ahead[:2] == plainly[:2]
    assert plainly[2].most == 1
    assert ahead[2].most <= 2


@settings(max_examples=60)
@given(program, st.data())
def test_requests_may_end_while_two_steps_are_in_flight(program, data) -> None:
    program = [(*each[:-1], data.draw(st.none() | st.integers(0, number))) for number, each in enumerate(program)]
    answers, ends, _ = run(program, True, 3, 20, 16, True)
    whole, _, _ = run([(*each[:-1], None) for each in program], False, 3, 20, 16, True)
    for name, reason in ends.items():
        known = answers.get(name, [])
        assert whole[name][: len(known)] == known
        assert reason == "abort" or known == whole[name]


def test_a_step_is_begun_before_the_one_before_it_is_collected() -> None:
    answers, _, executor = run([([1, 2], 8, 0, False, True, 0, None)], True, 2, 16, 16, True)
    assert executor.most == 2
    assert len(answers["0"]) == 8


def test_requests_that_need_the_host_are_not_planned_ahead() -> None:
    _, _, executor = run([([1, 2], 8, 0, False, False, 0, None)], True, 2, 16, 16, True)
    assert executor.most == 1


@pytest.mark.parametrize("step", [0, 1, 3])
def test_a_step_that_fails_takes_what_was_begun_upon_it(step) -> None:
    lanes, executor = engine_of(True, 2, 16, 16, True)
    lanes.add(sequence("a", [1, 2, 3], 8, 0, False, True))
    executor.fails_at = {step}
    tokens = []
    failed = []
    for _ in range(40):
        try:
            for _, _, updates in lanes.step(executor):
                tokens += [update.token_id for update in updates if update.token_id is not None]
        except PlanFailed as error:
            failed.append(error.plan.step)
        if not lanes.has_unfinished():
            break
    assert failed == [step]
    known = [1, 2, 3]
    for _ in range(8):
        known.append(sum(known) * 5 % 7)
    assert tokens == known[3:]


def test_a_request_of_a_better_priority_does_not_wait_for_one_that_is_planned_ahead() -> None:
    lanes, executor = engine_of(True, 2, 32, 32, True)
    lanes.add(sequence("a", [1, 2], 30, 1, False, True), sequence("b", [1, 2], 30, 1, False, True))
    for _ in range(3):
        list(lanes.step(executor))
    lanes.add(sequence("urgent", [3], 2, 0, False, True))
    told = [update.request_id for _ in range(3) for *_, updates in lanes.step(executor) for update in updates]
    assert "urgent" in told
    assert lanes.stats().preemptions == 1


def test_a_step_that_fails_when_collected_leaves_no_unknown_token() -> None:
    state = RequestState(NewRequest("a", (1, 2, 3), SamplingParams(max_tokens=4), 7))

    class Failing:
        def synchronize(self) -> None:
            raise RuntimeError("the device failed")

    class Runner:
        def begin(self, plan):
            ids = torch.zeros(1, dtype=torch.long)
            state.pending = ids, 0
            return Begun(plan, SimpleNamespace(sampled=((state, 0),)), None, ids, torch.zeros(2, 1), Failing())

    executor, plan = UniprocExecutor(Runner(), ahead=True), StepPlan(0, ())
    executor.launch(plan)
    with pytest.raises(RuntimeError, match="device failed"):
        executor.collect(plan)
    assert state.position == 3
