"""Rows of states: whoever reads one finds the state of just the tokens before, whatever became of others meanwhile."""

from hypothesis import given, settings
from hypothesis import strategies as st

from bestiary import SamplingParams
from bestiary.api.config import CacheConfig, SchedulerConfig
from bestiary.engine.plan import SampledToken, StepResult
from bestiary.engine.scheduler import Scheduler
from bestiary.engine.sequence import Sequence

BLOCK = 4


class StatefulExecutor:
    """Keeps a state in each row: the tokens that led to it. Every read is compared with the tokens before."""

    def __init__(self, scheduler: Scheduler, rows: int) -> None:
        self.scheduler, self.rows = scheduler, [None] * rows
        self.tokens: dict[str, list[int]] = {}
        self.done: dict[str, list[int]] = {}

    def step(self, waits=(), fails=False) -> None:
        plan = self.scheduler.schedule()
        for new in plan.new:
            self.tokens[new.request_id] = list(new.prompt_token_ids)
        written = [item.state_write for item in plan.items]
        assert len(set(written)) == len(written)
        sampled = {}
        for item in plan.items:
            known = self.tokens[item.request_id]
            assert item.state_write >= 0
            assert item.state_write not in [each.state_read for each in plan.items]
            assert (item.state_read == -1) == (item.start == 0)
            if item.state_read >= 0:
                assert self.rows[item.state_read] == known[: item.start]
            self.rows[item.state_write] = known[: item.start + item.count]
            if item.samples:
                token = sum(known) % 7
                late = item.request_id in waits
                sampled[item.request_id] = SampledToken(-1, instead="wait") if late else SampledToken(token)
        if fails:
            self.scheduler.abandon(plan)
            return
        for update in self.scheduler.update(plan, StepResult(plan.step, sampled)):
            if update.token_id is not None and update.token_id >= 0:
                self.tokens[update.request_id].append(update.token_id)
            if update.finish_reason is not None:
                self.done[update.request_id] = self.tokens[update.request_id]


def make(running: int, blocks: int, rows: int, budget: int, prefix_caching: bool = True) -> StatefulExecutor:
    config = SchedulerConfig(max_num_seqs=running, max_num_batched_tokens=budget)
    cache = CacheConfig(block_size=BLOCK, enable_prefix_caching=prefix_caching)
    return StatefulExecutor(Scheduler(config, cache, 64, blocks, num_state_rows=rows), rows)


def sequence(name: str, prompt: list[int], answer: int, priority: int = 0) -> Sequence:
    return Sequence(name, prompt, SamplingParams(max_tokens=answer, temperature=0.0), priority=priority)


def answer_of(prompt: list[int], count: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(sum(tokens) % 7)
    return tokens


@settings(max_examples=120)
@given(st.data())
def test_every_read_finds_the_state_of_the_tokens_before(data) -> None:
    running = data.draw(st.integers(1, 4))
    blocks = data.draw(st.integers(16, 24))
    rows = 2 * running + data.draw(st.integers(0, 4))
    executor = make(running, blocks, rows, data.draw(st.integers(1, 24)), data.draw(st.booleans()))
    wanted = {}
    for number in range(data.draw(st.integers(1, 7))):
        beginning = [1, 2, 3, 4, 5, 6, 7, 8, 9] if data.draw(st.booleans()) else []
        prompt = beginning + data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=12))
        count = data.draw(st.integers(1, 12))
        wanted[str(number)] = answer_of(prompt, count)
        executor.scheduler.add(sequence(str(number), prompt, count, data.draw(st.integers(0, 1))))
        for _ in range(data.draw(st.integers(0, 4))):
            executor.step(waits=data.draw(st.sets(st.sampled_from(sorted(wanted)))), fails=data.draw(st.booleans()))
    gone = data.draw(st.sets(st.sampled_from(sorted(wanted)), max_size=2))
    for name in gone:
        executor.scheduler.abort(name)
    for _ in range(400):
        if not executor.scheduler.has_unfinished():
            break
        executor.step()
    assert {name: executor.done[name] for name in wanted if name not in gone} == {
        name: tokens for name, tokens in wanted.items() if name not in gone
    }
    states = executor.scheduler.roster.kv.states
    assert len(states._free) + states.num_checkpoints == rows


def test_a_beginning_is_found_where_a_checkpoint_stands() -> None:
    executor = make(running=2, blocks=32, rows=8, budget=64)
    prompt = list(range(11))
    executor.scheduler.add(sequence("first", prompt, 2))
    while executor.scheduler.has_unfinished():
        executor.step()
    executor.scheduler.add(sequence("second", [*prompt, 40], 1))
    plan = executor.scheduler.schedule()
    assert plan.items[0].start == 8  # the last full block of the first prompt; its answer reached no further one


def test_checkpoints_give_way_before_sequences_wait() -> None:
    executor = make(running=2, blocks=32, rows=4, budget=64)
    for number in range(6):
        executor.scheduler.add(sequence(str(number), [number] * 9, 6))
    while executor.scheduler.has_unfinished():
        executor.step()
    assert len(executor.done) == 6
    assert executor.scheduler.roster.kv.states.num_checkpoints <= 4


def test_clearing_the_prefix_cache_drops_checkpoints() -> None:
    executor = make(running=1, blocks=16, rows=6, budget=64)
    executor.scheduler.add(sequence("one", [1] * 9, 2))
    while executor.scheduler.has_unfinished():
        executor.step()
    states = executor.scheduler.roster.kv.states
    assert states.num_checkpoints > 0
    executor.scheduler.clear_prefix_cache()
    assert states.num_checkpoints == 0
    assert len(states._free) == 6
