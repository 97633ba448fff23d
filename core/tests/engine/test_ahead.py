"""Steps planned before the tokens of the one before them are known: the same answers as when each is waited for."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bestiary import SamplingParams
from bestiary.api.config import CacheConfig, SchedulerConfig
from bestiary.engine.executor import UniprocExecutor
from bestiary.engine.lanes import Lanes, PlanFailed
from bestiary.engine.pending import Begun, draw_begun
from bestiary.engine.plan import NewRequest, SampledToken, StepPlan, StepResult
from bestiary.engine.request_state import RequestState
from bestiary.engine.scheduler import Scheduler
from bestiary.engine.sequence import Sequence
from bestiary.engine.structured.follower import WAIT

BLOCK = 4
STOP = 6


class LateExecutor:
    """Computes a plan when it is collected; a token that is not known then is one that it drew for the plan before.

    Requests that are `slow` have to wait before every third token, once.
    """

    def __init__(self) -> None:
        self.tokens: dict[str, list[int]] = {}
        self.cache: dict[int, tuple[str, int, int]] = {}  # slot → (request, position, token) written last
        self.states: dict[int, list] = {}  # row → the tokens that led to it
        self.launched: list = []
        self.most = self.ahead = 0
        self.fails_at: set[int] = set()
        self.slow: set[str] = set()
        self.waited: set[tuple[str, int]] = set()

    def launch(self, plan, copy=0) -> None:
        self.ahead += bool(self.launched)
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
            end = item.start + item.count
            for position in range(item.start, end):
                slot = item.block_ids[position // BLOCK] * BLOCK + position % BLOCK
                self.cache[slot] = (item.request_id, position, [*known, None][position])
            if item.state_write >= 0:
                assert (item.state_read >= 0) == (item.start > 0)
                read = [] if item.state_read < 0 else self.states[item.state_read]
                self.states[item.state_write] = read + [*known, None][item.start : end]
            if end > len(known):  # upon a token that did not come
                continue
            context = [self.cache[item.block_ids[at // BLOCK] * BLOCK + at % BLOCK] for at in range(end)]
            assert [(at, token) for _, at, token in context] == list(enumerate(known[:end]))
            assert item.state_write < 0 or self.states[item.state_write] == known[:end]
            if item.samples:
                sampled[item.request_id] = self.drawn(item.request_id, known)
        return StepResult(plan.step, sampled)

    def drawn(self, name: str, known: list[int]) -> SampledToken:
        place = name, len(known)
        if name in self.slow and len(known) % 3 == 0 and place not in self.waited:
            self.waited.add(place)
            return WAIT
        known.append(sum(known) * 5 % 7)
        return SampledToken(known[-1])


def engine_of(
    ahead: bool, running: int, blocks: int, budget: int, caching: bool, rows: int | None = None
) -> tuple[Lanes, LateExecutor]:
    config = SchedulerConfig(max_num_seqs=running, max_num_batched_tokens=budget)
    cache = CacheConfig(block_size=BLOCK, enable_prefix_caching=caching)
    return Lanes([Scheduler(config, cache, 64, blocks, num_state_rows=rows)], ahead), LateExecutor()


def sequence(name: str, prompt: list[int], answer: int, priority: int = 0, stops: bool = False, **params) -> Sequence:
    params = SamplingParams(max_tokens=answer, temperature=0.0, stop_token_ids=[STOP] if stops else [], **params)
    return Sequence(name, prompt, params, priority=priority)


def run(program, ahead: bool, running: int, blocks: int, budget: int, caching: bool, rows: int | None = None):
    lanes, executor = engine_of(ahead, running, blocks, budget, caching, rows)
    answers: dict[str, list[int]] = {}
    ends: dict[str, str] = {}

    def step() -> None:
        for _, _, updates in lanes.step(executor):
            for update in updates:
                if update.token_id is not None:
                    answers.setdefault(update.request_id, []).append(update.token_id)
                if update.finish_reason is not None:
                    ends[update.request_id] = update.finish_reason

    for number, (prompt, answer, priority, stops, slow, steps, aborted) in enumerate(program):
        lanes.add(sequence(str(number), prompt, answer, priority, stops))
        executor.slow |= {str(number)} if slow else set()
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
    assert lanes.stats().kv_cache.used_blocks == 0
    states = lanes.lanes[0].scheduler.roster.kv.states
    assert states is None or len(states._free) + states.num_checkpoints == rows
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
@given(
    program, st.integers(1, 4), st.integers(16, 22), st.integers(1, 20), st.booleans(), st.none() | st.integers(0, 6)
)
def test_the_same_answers_ahead(program, running, blocks, budget, caching, more) -> None:
    rows = None if more is None else 2 * running + more
    plainly = run(program, False, running, blocks, budget, caching, rows)
    ahead = run(program, True, running, blocks, budget, caching, rows)
    assert ahead[:2] == plainly[:2]
    assert plainly[2].most == 1
    assert ahead[2].most <= 2


@settings(max_examples=60)
@given(program, st.data(), st.none() | st.integers(6, 12))
def test_requests_may_end_while_two_steps_are_in_flight(program, data, rows) -> None:
    program = [(*each[:-1], data.draw(st.none() | st.integers(0, number))) for number, each in enumerate(program)]
    answers, ends, _ = run(program, True, 3, 20, 16, True, rows)
    whole, _, _ = run([(*each[:-1], None) for each in program], False, 3, 20, 16, True, rows)
    for name, reason in ends.items():
        known = answers.get(name, [])
        assert whole[name][: len(known)] == known
        assert reason == "abort" or known == whole[name]


def test_a_step_is_begun_before_the_one_before_it_is_collected() -> None:
    answers, _, executor = run([([1, 2], 8, 0, False, False, 0, None)], True, 2, 16, 16, True)
    assert executor.most == 2
    assert len(answers["0"]) == 8


def test_a_token_that_does_not_come_is_waited_for_by_its_own_request() -> None:
    answers, _, executor = run([([1, 2], 8, 0, False, slow, 0, None) for slow in (False, True)], True, 2, 16, 16, True)
    assert executor.most == 2
    assert {name for name, _ in executor.waited} == {"1"}
    assert answers["0"] == answers["1"]


@pytest.mark.parametrize(
    "params",
    [{"presence_penalty": 1.0}, {"min_tokens": 3}, {"logprobs": 2}, {"structured_outputs": {"regex": "a"}}],
    ids=str,
)
def test_what_a_request_asks_of_its_tokens_keeps_nobody_waiting(params) -> None:
    lanes, executor = engine_of(True, 2, 16, 16, True)
    lanes.add(sequence("a", [1, 2], 8, **params))
    while lanes.has_unfinished():
        list(lanes.step(executor))
    assert executor.most == 2


def test_one_that_waits_for_blocks_keeps_nobody_waiting() -> None:
    """Until some are free."""
    lanes, executor = engine_of(True, 3, 8, 32, False)
    lanes.add(*(sequence(name, [1] * 8, 6) for name in "ab"))
    lanes.add(sequence("c", [2] * 20, 3))
    told = []
    while lanes.has_unfinished():
        before = executor.ahead
        told += [
            (update.request_id, executor.ahead - before) for *_, updates in lanes.step(executor) for update in updates
        ]
    first = told.index(("c", 1))
    assert {name for name, _ in told[:first]} == {"a", "b"}
    assert sum(ahead for name, ahead in told[:first] if name == "a") >= 4
    assert executor.launched == []


def test_ranks_of_which_one_follows_forms_wait_for_these() -> None:
    for form, most in (({"regex": "a*"}, 1), (None, 2)):
        config = SchedulerConfig(max_num_seqs=2, max_num_batched_tokens=16)
        lanes, executor = (
            Lanes([Scheduler(config, CacheConfig(block_size=BLOCK), 64, 16, shared=True)], True),
            LateExecutor(),
        )
        lanes.add(sequence("a", [1, 2], 8, structured_outputs=form), sequence("b", [1, 2], 8))
        while lanes.has_unfinished():
            list(lanes.step(executor))
        assert executor.most == most


def test_prompts_that_are_to_be_explained_are_not_planned_upon() -> None:
    lanes, executor = engine_of(True, 2, 16, 16, True)
    lanes.add(sequence("a", [1, 2], 8, prompt_logprobs=1))
    lanes.lanes[0].launch(executor)
    assert not lanes.lanes[0].launch_ahead(executor)


@pytest.mark.parametrize(("rows", "ahead"), [(2, 1), (3, 7)])
def test_models_with_states_need_a_row_more(rows, ahead) -> None:
    answers, _, executor = run([([1, 2], 8, 0, False, False, 0, None)], True, 1, 16, 16, False, rows)
    assert executor.ahead == ahead  # a request that begins reads none
    assert len(answers["0"]) == 8


@pytest.mark.parametrize("rows", [None, 5])
@pytest.mark.parametrize("step", [0, 1, 3])
def test_a_step_that_fails_takes_what_was_begun_upon_it(step, rows) -> None:
    lanes, executor = engine_of(True, 2, 16, 16, True, rows)
    lanes.add(sequence("a", [1, 2, 3], 8))
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
    lanes.add(sequence("a", [1, 2], 30, 1), sequence("b", [1, 2], 30, 1))
    for _ in range(3):
        list(lanes.step(executor))
    lanes.add(sequence("urgent", [3], 2))
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
            begun = Begun(plan, SimpleNamespace(sampled=((state, 0),)), made=torch.zeros(1, 4))
            draw_begun(begun, None)
            begun.queued = replace(begun.queued, ready=Failing())
            return begun

    executor, plan = UniprocExecutor(Runner(), ahead=True), StepPlan(0, ())
    executor.launch(plan)
    with pytest.raises(RuntimeError, match="device failed"):
        executor.collect(plan)
    assert state.position == 3
