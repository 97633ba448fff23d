"""Random programs of requests, steps, aborts and failures against the one-request-at-a-time oracle.

The executor (`bestiary.testing.paged_model`) checks every page it reads; this file checks what comes out, and after
each rule that the books balance. A failing program shrinks to a short list of calls that can be replayed.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from bestiary.api.config import CacheConfig, LoRAConfig, SchedulerConfig
from bestiary.api.errors import RequestError
from bestiary.api.lora import LoRAInfo
from bestiary.api.sampling import SamplingParams
from bestiary.engine.adapters import Adapters
from bestiary.engine.plan import NewRequest
from bestiary.engine.scheduler import Scheduler
from bestiary.engine.sequence import Sequence, Status
from bestiary.testing.paged_model import Answer, PagedModel

EOS = (0, 1)
SHARED = [(5,) * 40, tuple(i % 7 + 2 for i in range(40)), tuple(i * i % 9 + 1 for i in range(40))]

# What a request looks like: every entry a list to choose from.
SHAPE = {
    "shared": [0, 1, 2],
    "length": [9, 3, 16, 17, 24, 1, 36, 0],
    "own": [(), (), (3,), (7, 8, 9)],
    "max_tokens": [20, 30, 12, None, 5, 1],
    "min_tokens": [0, 0, 3, 20],
    "stop_token_ids": [(), (5, 6), (1,)],
    "ignore_eos": [False, True],
    "prompt_logprobs": [None, None, 0],
    "priority": [0, 1, 2],
    "lora_name": [None, None, "a@", "b@", "c@"],
    "cache_salt": [None, None, None, "s"],
    "n": [1, 1, 1, 2, 3],
    "numerical_at": [None] * 11 + [0, 1, 5],
    "waits_at": [()] * 8 + [(0,), (2,), (0, 1, 4)],
    "ends_at": [None] * 17 + [0, 1, 6],
    "made_to_fit": [True] * 9 + [False],
}
# The engine; a pool is (tokens a block, blocks), small enough that preemption is the rule.
ENGINE = {
    "pool": [(8, 6), (1, 40), (16, 4), (3, 14), (8, 5), (1, 64), (16, 6), (8, 2), (16, 1), (1, 6)],
    "max_num_seqs": [4, 6, 2, 1],
    "budget": [13, 200, 40, 7, 4, 2, 1],
    "max_model_len": [48, 24, 64, 8],
    "chunked": [True, False],
    "prefix_caching": [True, True, False],
    "prompt_salt": [None, None, lambda length: str(length // 10)],
    "depth": [1, 1, 2, 3],
    "max_loras": [None, 1, 2],
    "spare_rows": [None, None, 0, 1, 3, 12],
}
shapes = st.fixed_dictionaries({name: st.sampled_from(choices) for name, choices in SHAPE.items()})
engines = st.fixed_dictionaries({name: st.sampled_from(choices) for name, choices in ENGINE.items()})


@dataclass
class Request:
    sequence: Sequence
    answer: Answer
    tokens: list[int] = field(default_factory=list)
    ended_by: str | None = None


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(engine=engines, batch=st.lists(shapes, min_size=3, max_size=8))
    def start(self, engine, batch):
        self.block_size, self.num_blocks = engine["pool"]
        self.budget, self.max_num_seqs = engine["budget"], engine["max_num_seqs"]
        self.max_model_len, self.chunked = engine["max_model_len"], engine["chunked"]
        config = SchedulerConfig(
            max_num_seqs=self.max_num_seqs, max_num_batched_tokens=self.budget, enable_chunked_prefill=self.chunked
        )
        cache = CacheConfig(block_size=self.block_size, enable_prefix_caching=engine["prefix_caching"])
        salt = engine["prompt_salt"]
        self.depth, self.max_loras = engine["depth"], engine["max_loras"]
        adapters = None if self.max_loras is None else Adapters(LoRAConfig(max_loras=self.max_loras))
        for name in "abc" if adapters else "":
            adapters.add(LoRAInfo(name, "", "", 1, (), 0), pinned=False)
        spare = engine["spare_rows"]  # beyond the two of each running request; None: no layer has a state
        rows = self.state_rows = 0 if spare is None else 2 * self.max_num_seqs + spare
        self.scheduler = Scheduler(
            config, cache, self.max_model_len, self.num_blocks, salt, self.depth, adapters, rows or None
        )
        self.model = PagedModel(
            self.num_blocks, self.block_size, 31, prompt_salt=salt, lora_slots=self.max_loras, state_rows=rows
        )
        self.evictions = 0
        self.requests: dict[str, Request] = {}
        self.number = 0
        self.plans = []  # in flight, oldest first
        self.most_in_flight = 0
        self.ended_in_flight: set[str] = set()
        self.add(batch)

    # --- rules ----------------------------------------------------------------------------------------------------

    @rule(batch=st.lists(shapes, min_size=1, max_size=4))
    def add(self, batch):
        for shape in batch:
            self._add(shape)

    def _add(self, shape):
        prompt = [*SHARED[shape["shared"]][: shape["length"]], *shape["own"]]
        max_tokens, min_tokens = shape["max_tokens"], shape["min_tokens"]
        if shape["made_to_fit"]:
            limit = min(self.max_model_len, self.num_blocks * self.block_size + 1)
            prompt = (prompt or [3])[: min(limit - 1, limit if self.chunked else self.budget)]
            room = limit - len(prompt)
            max_tokens = room if max_tokens is None else min(max_tokens, room)
        sampling = SamplingParams(
            n=shape["n"],
            max_tokens=max_tokens,
            min_tokens=min_tokens if max_tokens is None else min(min_tokens, max_tokens),
            stop_token_ids=shape["stop_token_ids"],
            ignore_eos=shape["ignore_eos"],
            prompt_logprobs=shape["prompt_logprobs"],
        )
        group: list[Sequence] = []
        for index in range(sampling.n):
            sequence = Sequence(
                f"r{self.number}.{index}",
                prompt,
                sampling.child(index),
                seed=self.number * 100 + index,
                priority=shape["priority"],
                eos_token_ids=EOS,
                lora_name=shape["lora_name"],
                cache_salt=shape["cache_salt"],
                leader=group[0] if group else None,
            )
            group.append(sequence)
        self.number += 1
        if not self._fits(prompt, sampling):
            with pytest.raises(RequestError):
                self.scheduler.add(*group)
            return
        self.scheduler.add(*group)
        if shape["numerical_at"] is not None:
            self.model.numerical_at[group[-1].request_id] = shape["numerical_at"]
        for s in group:
            self.model.waits_at[s.request_id] = set(shape["waits_at"])
            if shape["ends_at"] is not None:
                self.model.ends_at[s.request_id] = shape["ends_at"]
            new = NewRequest(s.request_id, tuple(prompt), s.sampling, s.seed, EOS, s.lora_name)
            self.requests[s.request_id] = Request(s, self.model.generate_alone(new, self.max_model_len))

    def _fits(self, prompt, sampling):
        total = self.max_model_len if sampling.max_tokens is None else len(prompt) + sampling.max_tokens
        return (
            0 < len(prompt) < self.max_model_len
            and len(prompt) + sampling.min_tokens <= total <= self.max_model_len
            and total - 1 <= self.num_blocks * self.block_size
            and (self.chunked or len(prompt) <= self.budget)
        )

    @precondition(lambda self: len(self._live()) > 2)
    @rule(which=st.integers(0, 50), reason=st.sampled_from(["abort", "abort", "stop"]))
    def end_from_outside(self, which, reason):
        name = self._live()[which % len(self._live())]
        update = self.scheduler.finish(name, reason, "text" if reason == "stop" else None)
        assert (update.finish_reason, update.token_id) == (reason, None)
        self.requests[name].ended_by = reason
        self.ended_in_flight.add(name)
        assert self.scheduler.abort(name) is None

    @precondition(lambda self: len(self.plans) < self.depth)
    @rule()
    def schedule(self):
        plan = self.scheduler.schedule()
        if plan is None:
            assert self.plans, "only what is in flight may be waited for"
            return
        self._check_plan(plan)
        self.plans.append(plan)
        self.most_in_flight = max(self.most_in_flight, len(self.plans))

    @precondition(lambda self: self.plans)
    @rule()
    def execute(self):
        plan = self.plans.pop(0)
        self._take(self.scheduler.update(plan, self.model.execute(plan)))

    @precondition(lambda self: len(self.plans) == 1)
    @rule(reached=st.booleans())
    def lose_a_step(self, reached):
        plan = self.plans.pop()
        if reached:
            self.model.execute(plan, lose=True)
        self.scheduler.abandon(plan)

    @precondition(lambda self: not self.plans)
    @rule(steps=st.integers(2, 12))
    def run(self, steps):
        for _ in range(steps):
            for _ in range(self.depth):
                self.schedule()
                self.balance()
            while self.plans:
                self.execute()
                self.balance()

    # --- checks ---------------------------------------------------------------------------------------------------

    def _live(self):
        return [name for name, request in self.requests.items() if request.ended_by is None]

    def _check_plan(self, plan):
        assert plan.num_tokens <= self.budget
        assert len(plan.items) <= self.max_num_seqs
        assert len({item.request_id for item in plan.items}) == len(plan.items)
        flying = {item.request_id for each in self.plans for item in each.items}
        assert not flying & {item.request_id for item in plan.items}, "a request is in one plan at a time"
        assert bool(plan.items) or self.plans or not self._live(), "a step does something if there is something to do"
        assert all(item.request_id in self._live() for item in plan.items)
        self.evictions += any(self.model.lora_slots[load.slot] is not None for load in plan.lora_loads)
        if not self.chunked:
            for item in plan.items:
                sequence = self.requests[item.request_id].sequence
                assert item.samples or sequence.total > self.budget

    def _take(self, updates):
        for update in updates:
            assert update.request_id not in self.ended_in_flight
            request = self.requests[update.request_id]
            answer = request.answer
            assert request.ended_by is None, "one end, and nothing after it"
            if update.token_id is not None:
                request.tokens.append(update.token_id)
                first = len(request.tokens) == 1
                assert update.prompt_logprobs == (answer.prompt_logprobs if first else None)
            elif update.finish_reason == "stop":  # in place of a token
                assert update.prompt_logprobs == (None if request.tokens else answer.prompt_logprobs)
            assert request.tokens == answer.token_ids[: len(request.tokens)]
            request.ended_by = update.finish_reason
            if update.finish_reason is not None:
                assert request.tokens == answer.token_ids
                assert (update.finish_reason, update.stop_reason) == (answer.finish_reason, answer.stop_reason)
                assert update.error == ("numerical" if update.finish_reason == "error" else None)
            else:
                without = answer.finish_reason == "error" or update.request_id in self.model.ends_at
                assert len(request.tokens) < len(answer.token_ids) or without

    @invariant()
    def balance(self):
        scheduler, pool = self.scheduler, self.scheduler.roster.kv.pool
        running, waiting = scheduler.roster.running, scheduler.roster.waiting
        assert [s.rank for s in running] == sorted({s.rank for s in running})
        assert [s.rank for s in waiting] == sorted({s.rank for s in waiting})
        assert {s.request_id for s in running + waiting} == set(self._live())
        assert len(running) <= self.max_num_seqs
        assert all(s.status is Status.RUNNING for s in running)
        assert all(s.status is Status.WAITING and not s.block_table and not s.num_computed for s in waiting)
        holders = Counter(block for s in running for block in s.block_table)
        assert [holders[block] for block in range(self.num_blocks)] == pool.references
        assert all(pool.is_free(block) == (holders[block] == 0) for block in range(self.num_blocks))
        for s in running:
            assert s.block_ids == tuple(s.block_table)
            assert len(set(s.block_ids)) == len(s.block_ids)
            assert s.num_computed < s.total
            assert s.num_computed <= s.capacity == len(s.block_table) * self.block_size
            full = s.num_computed // self.block_size
            assert all(holders[block] == 1 for block in s.block_table[full:]), "only what is computed is shared"
        if self.state_rows:
            self._balance_rows()
        if self.max_loras is not None:
            held = {s.lora_name for s in running} - {None}
            assert len(held) <= self.max_loras
            slots = [scheduler.slot_of(each) for each in ["a@", "b@", "c@"]]
            assert all(scheduler.slot_of(each) is not None for each in held)
            taken = [slot for slot in slots if slot is not None]
            assert len(set(taken)) == len(taken) <= self.max_loras
        stats = scheduler.stats()
        assert (stats.running, stats.waiting) == (len(running), len(waiting))
        assert stats.kv_cache.used_blocks + stats.kv_cache.free_blocks == self.num_blocks
        assert stats.kv_cache.prefix_hits <= stats.kv_cache.prefix_queries

    def _balance_rows(self):
        """A row is held by those whose state or next state it is, once more by its checkpoint, and by nobody else."""
        states, running = self.scheduler.roster.kv.states, self.scheduler.roster.running
        assert all((s.state_row, s.next_row) == (-1, -1) for s in self.scheduler.roster.waiting)
        written = [s.next_row for s in running if s.next_row >= 0]
        holders = Counter(written + [s.state_row for s in running if s.state_row >= 0])
        holders.update(states._checkpoints.values())
        assert [holders[row] for row in range(self.state_rows)] == states._held
        assert sorted(states._free) == [row for row in range(self.state_rows) if not holders[row]]
        assert all(holders[row] == 1 for row in written), "a row that will be written can be read by nobody else"
        assert all((s.state_row < 0) == (s.num_computed == 0) for s in running)

    def teardown(self):
        if not hasattr(self, "scheduler"):
            return
        while self.plans:
            self.execute()
        # The best-ranked request advances in every step in which it need not wait, so this many are enough for all.
        waits = sum(map(len, self.model.waits_at.values()))
        bound = sum(request.sequence.max_total + self.max_num_seqs for request in self.requests.values()) + waits
        for _ in range(bound):
            if not self.scheduler.has_unfinished():
                break
            self.run(1)
        assert not self._live(), "somebody starved"
        if self.scheduler.has_unreported():
            self.schedule()
            self.execute()
        assert not self.model.known, "the executor was not told of every end"
        usage = self.scheduler.stats().kv_cache
        assert usage.free_blocks == usage.num_blocks
        if self.state_rows:
            states = self.scheduler.roster.kv.states
            assert len(states._free) + states.num_checkpoints == self.state_rows
        assert all(info.requests == 0 for info in self.scheduler.roster.adapters.infos())
        assert not any(self.scheduler.roster.slots._holders.values())


quick = settings(deadline=None, max_examples=100, stateful_step_count=15, suppress_health_check=[HealthCheck.too_slow])
TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = quick


@pytest.mark.full
class TestManyPrograms(SchedulerMachine.TestCase):
    settings = settings(quick, max_examples=5000, stateful_step_count=40)


def walk(seed):
    """A program drawn evenly (Hypothesis prefers small and similar ones, which rarely preempt); returns the machine."""
    draw = random.Random(seed)
    machine = SchedulerMachine()

    def batch(size):
        return [{name: draw.choice(choices) for name, choices in SHAPE.items()} for _ in range(size)]

    machine.start({name: draw.choice(choices) for name, choices in ENGINE.items()}, batch(draw.randint(1, 8)))
    for _ in range(draw.randint(5, 40)):
        action = draw.random()
        if action < 0.1:
            machine.add(batch(draw.randint(1, 3)))
        elif action < 0.2 and len(machine._live()) > 2:
            machine.end_from_outside(draw.randrange(50), draw.choice(["abort", "stop"]))
        elif len(machine.plans) < machine.depth and (not machine.plans or action < 0.7):
            machine.schedule()
        elif action < 0.25 and len(machine.plans) == 1:
            machine.lose_a_step(draw.random() < 0.5)
        else:
            machine.execute()
        machine.balance()
    machine.teardown()
    return machine


def walks(seeds):
    seen = Counter()
    for seed in seeds:
        try:
            machine = walk(seed)
        except Exception as error:
            error.add_note(f"replay with walk({seed})")
            raise
        stats = machine.scheduler.stats()
        seen["preempting"] += stats.preemptions > 0
        seen["piping"] += machine.most_in_flight > 1
        seen["hitting"] += stats.kv_cache.prefix_hits > 0
        states = machine.scheduler.roster.kv.states
        seen["checkpointing"] += states is not None and states.num_checkpoints > 0
        seen["hitting with states"] += states is not None and stats.kv_cache.prefix_hits > 0
        seen["evicting"] += machine.evictions > 0
        seen.update(request.ended_by for request in machine.requests.values())
    return seen


def test_random_walks():
    seen = walks(range(250))
    assert min(seen[reason] for reason in ("stop", "length", "abort", "error")) >= 50, seen
    assert seen["preempting"] >= 50, "too few programs preempt for this test to mean anything"
    assert seen["piping"] >= 50, "too few programs have several plans in flight"
    assert seen["hitting"] >= 50, "too few programs hit the prefix cache"
    assert seen["evicting"] >= 50, "too few programs evict adapters"
    assert seen["checkpointing"] >= 50, "too few programs keep states"
    assert seen["hitting with states"] >= 15, "too few programs begin with a state that was kept"


@pytest.mark.full
def test_many_random_walks():
    walks(range(1000, 6000))
