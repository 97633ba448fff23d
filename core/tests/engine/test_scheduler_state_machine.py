"""Random programs of requests, steps, aborts and failures against the one-request-at-a-time oracle.

The executor (`bestiary.testing.paged_model`) checks every page it reads; this file checks what comes out, and after
each rule that the books balance. A failing program shrinks to a short list of calls that can be replayed.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from bestiary.api.config import CacheConfig, SchedulerConfig
from bestiary.api.errors import RequestError
from bestiary.api.sampling import SamplingParams
from bestiary.engine.plan import NewRequest
from bestiary.engine.scheduler import Scheduler
from bestiary.engine.sequence import Sequence, Status
from bestiary.testing.paged_model import Answer, PagedModel

EOS = (0, 1)
SHARED = [(5,) * 40, tuple(i % 7 + 2 for i in range(40)), tuple(i * i % 9 + 1 for i in range(40))]
IDS = st.integers(0, 10)

samplings = st.builds(
    SamplingParams,
    max_tokens=st.none() | st.integers(4, 12),
    min_tokens=st.integers(0, 4),
    stop_token_ids=st.lists(st.integers(0, 4), max_size=2),
    ignore_eos=st.booleans(),
    prompt_logprobs=st.sampled_from([None, None, 0]),
)
prompts = st.builds(
    lambda shared, length, own: [*shared[:length], *own],
    st.sampled_from(SHARED),
    st.integers(0, 36),
    st.lists(IDS, max_size=6),
)
# block size, and how many blocks: few, so that preemption is the rule
pools = st.sampled_from([(1, 6), (1, 20), (1, 48), (3, 6), (8, 2), (8, 3), (8, 8), (16, 1), (16, 3), (16, 6)])


@dataclass
class Request:
    sequence: Sequence
    answer: Answer
    tokens: list[int] = field(default_factory=list)
    ended_by: str | None = None


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(
        pool=pools,
        max_num_seqs=st.integers(1, 6),
        budget=st.sampled_from([1, 2, 3, 5, 8, 13, 40, 200]),
        max_model_len=st.integers(8, 48),
        chunked=st.booleans(),
        prefix_caching=st.sampled_from([True, True, False]),
    )
    def start(self, pool, max_num_seqs, budget, max_model_len, chunked, prefix_caching):
        self.block_size, self.num_blocks = pool
        self.budget, self.max_num_seqs, self.max_model_len, self.chunked = budget, max_num_seqs, max_model_len, chunked
        config = SchedulerConfig(
            max_num_seqs=max_num_seqs, max_num_batched_tokens=budget, enable_chunked_prefill=chunked
        )
        cache = CacheConfig(block_size=self.block_size, enable_prefix_caching=prefix_caching)
        self.scheduler = Scheduler(config, cache, max_model_len, self.num_blocks)
        self.model = PagedModel(self.num_blocks, self.block_size)
        self.requests: dict[str, Request] = {}
        self.number = 0
        self.plan = None
        self.ended_in_flight: set[str] = set()

    # --- rules ----------------------------------------------------------------------------------------------------

    @rule(
        prompt=prompts,
        sampling=samplings,
        priority=st.integers(0, 2),
        lora_name=st.sampled_from([None, None, "a"]),
        cache_salt=st.sampled_from([None, None, "s"]),
        n=st.sampled_from([1, 1, 1, 2, 3]),
        numerical_at=st.none() | st.integers(0, 12),
    )
    def add(self, prompt, sampling, priority, lora_name, cache_salt, n, numerical_at):
        group: list[Sequence] = []
        for index in range(n):
            sequence = Sequence(
                f"r{self.number}.{index}",
                prompt,
                sampling.child(index),
                seed=self.number * 100 + index,
                priority=priority,
                eos_token_ids=EOS,
                lora_name=lora_name,
                cache_salt=cache_salt,
                leader=group[0] if group else None,
            )
            group.append(sequence)
        self.number += 1
        if not self._fits(prompt, sampling):
            with pytest.raises(RequestError):
                self.scheduler.add(*group)
            return
        self.scheduler.add(*group)
        if numerical_at is not None:
            self.model.numerical_at[group[-1].request_id] = numerical_at
        for sequence in group:
            new = NewRequest(sequence.request_id, tuple(prompt), sequence.sampling, sequence.seed, EOS, lora_name)
            answer = self.model.generate_alone(new, self.max_model_len)
            self.requests[sequence.request_id] = Request(sequence, answer)

    def _fits(self, prompt, sampling):
        total = self.max_model_len if sampling.max_tokens is None else len(prompt) + sampling.max_tokens
        return (
            0 < len(prompt) < self.max_model_len
            and len(prompt) + sampling.min_tokens <= total <= self.max_model_len
            and total - 1 <= self.num_blocks * self.block_size
            and (self.chunked or len(prompt) <= self.budget)
        )

    @precondition(lambda self: self._live())
    @rule(data=st.data(), reason=st.sampled_from(["abort", "abort", "stop"]))
    def end_from_outside(self, data, reason):
        name = data.draw(st.sampled_from(self._live()))
        update = self.scheduler.finish(name, reason, "text" if reason == "stop" else None)
        assert (update.finish_reason, update.token_id) == (reason, None)
        self.requests[name].ended_by = reason
        self.ended_in_flight.add(name)
        assert self.scheduler.abort(name) is None

    @precondition(lambda self: self.plan is None)
    @rule()
    def schedule(self):
        self.plan = self.scheduler.schedule()
        self.ended_in_flight = set()
        self._check_plan()

    @precondition(lambda self: self.plan is not None)
    @rule()
    def execute(self):
        plan, self.plan = self.plan, None
        self._take(self.scheduler.update(plan, self.model.execute(plan)))

    @precondition(lambda self: self.plan is not None)
    @rule(reached=st.booleans())
    def lose_a_step(self, reached):
        plan, self.plan = self.plan, None
        if reached:
            self.model.execute(plan, lose=True)
        self.scheduler.abandon(plan)

    @precondition(lambda self: self.plan is None)
    @rule(steps=st.integers(2, 12))
    def run(self, steps):
        for _ in range(steps):
            self.schedule()
            self.balance()
            self.execute()
            self.balance()

    # --- checks ---------------------------------------------------------------------------------------------------

    def _live(self):
        return [name for name, request in self.requests.items() if request.ended_by is None]

    def _check_plan(self):
        plan = self.plan
        assert plan.num_tokens <= self.budget
        assert len(plan.items) <= self.max_num_seqs
        assert len({item.request_id for item in plan.items}) == len(plan.items)
        assert bool(plan.items) == bool(self._live()), "a step does something if there is something to do"
        assert all(item.request_id in self._live() for item in plan.items)
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
            assert request.tokens == answer.token_ids[: len(request.tokens)]
            request.ended_by = update.finish_reason
            if update.finish_reason is not None:
                assert request.tokens == answer.token_ids
                assert (update.finish_reason, update.stop_reason) == (answer.finish_reason, answer.stop_reason)
                assert update.error == ("numerical" if update.finish_reason == "error" else None)
            else:
                assert len(request.tokens) < len(answer.token_ids) or answer.finish_reason == "error"

    @invariant()
    def balance(self):
        scheduler, pool = self.scheduler, self.scheduler._kv.pool
        running, waiting = scheduler._running, scheduler._waiting
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
        stats = scheduler.stats()
        assert (stats.running, stats.waiting) == (len(running), len(waiting))
        assert stats.kv_cache.used_blocks + stats.kv_cache.free_blocks == self.num_blocks
        assert stats.kv_cache.prefix_hits <= stats.kv_cache.prefix_queries

    def teardown(self):
        if not hasattr(self, "scheduler"):
            return
        if self.plan is not None:
            self.execute()
        # The best-ranked request advances in every step, so this many steps are enough for all.
        bound = sum(request.sequence.max_total + self.max_num_seqs for request in self.requests.values())
        for _ in range(bound):
            if not self.scheduler.has_unfinished():
                break
            self.schedule()
            self.execute()
            self.balance()
        assert not self._live(), "somebody starved"
        if self.scheduler.has_unreported():
            self.schedule()
            self.execute()
        assert not self.model.known, "the executor was not told of every end"
        usage = self.scheduler.stats().kv_cache
        assert usage.free_blocks == usage.num_blocks


quick = settings(deadline=None, max_examples=250, stateful_step_count=20, suppress_health_check=[HealthCheck.too_slow])
TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = quick


@pytest.mark.full
class TestManyPrograms(SchedulerMachine.TestCase):
    settings = settings(quick, max_examples=5000, stateful_step_count=40)
