"""Everything at once (EX7): random programs of requests on random engines, against one request at a time.

Schedule, chunks, prefix cache, preemption, aborts, adapters, several answers, seeded sampling, stop strings, ids and
grammars. A program that fails is shrunk and left as a trace, which `support/programs.py` replays.
"""

import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from bestiary.engine import kv_cache

from .support.programs import ENGINES, SHAPE, Laboratory, Program, Trace, Wrong, replay

PARTS = [(0, 16), *(pytest.param(part, 650, marks=pytest.mark.full) for part in range(1, 5))]
"""Four parts, for several processes of pytest-xdist: 5,200 programs; 32 of them by default."""
shapes = st.fixed_dictionaries({name: st.sampled_from(choices) for name, choices in SHAPE.items()})


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory):
    made = Laboratory(tmp_path_factory.mktemp("laboratory"))
    yield made
    made.close()


def machine(laboratory: Laboratory, trace_file: Path) -> type[RuleBasedStateMachine]:
    """A state machine whose every run is a program. One that goes wrong is left in `trace_file`; Hypothesis runs the
    smallest that still does last."""

    class Programs(RuleBasedStateMachine):
        program: Program | None = None

        @initialize(engine=st.sampled_from(list(ENGINES)), first=st.lists(shapes, min_size=2, max_size=6))
        def start(self, engine, first):
            self.program = Program(laboratory, Trace(engine))
            for shape in first:
                self.program.do("add", shape)

        @rule(shape=shapes)
        def add(self, shape):
            self.program.do("add", shape)

        @rule(times=st.integers(1, 6))
        def step(self, times):
            self.program.do("step", times)

        @rule(which=st.integers(0, 20))
        def abort(self, which):  # nothing where none lives: which do depends on how soon a grammar was ready
            self.program.do("abort", which)

        def teardown(self):
            if self.program is None:
                return
            try:
                self.program.finish()
            except Wrong:
                self.program.trace.write(trace_file)
                raise
            finally:
                self.program.clear()

    return Programs


def hypothesis_programs(laboratory, trace_file, count):
    run_state_machine_as_test(
        machine(laboratory, trace_file),
        settings=settings(
            max_examples=count, stateful_step_count=15, deadline=None, database=None, derandomize=count <= 100,
            suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip


def walk(laboratory, seed):
    """A program drawn evenly: Hypothesis prefers small and similar ones, which rarely preempt."""
    draw = random.Random(seed)
    trace = Trace(draw.choice(list(ENGINES)))
    for _ in range(draw.randint(6, 24)):
        action = draw.random()
        if action < 0.5:
            trace.actions.append(["add", {name: draw.choice(choices) for name, choices in SHAPE.items()}])
        elif action < 0.9:
            trace.actions.append(["step", draw.randint(1, 6)])
        else:
            trace.actions.append(["abort", draw.randint(0, 20)])
    replay(laboratory, trace)


def walks(laboratory, seeds):
    for seed in seeds:
        try:
            walk(laboratory, seed)
        except Wrong as error:
            error.add_note(f"replay with walk(laboratory, {seed})")
            raise


@pytest.mark.parametrize(("part", "count"), PARTS)
def test_programs_of_hypothesis(laboratory, case, tmp_path, part, count):
    before = laboratory.seen.copy()
    hypothesis_programs(laboratory, tmp_path / "trace.json", count)
    case("EX7", count, **(laboratory.seen - before))


@pytest.mark.parametrize(("part", "count"), PARTS)
def test_walks(laboratory, case, part, count):
    before = laboratory.seen.copy()
    walks(laboratory, range(part * 10_000, part * 10_000 + count))
    seen = laboratory.seen - before
    for what in ("length", "stop", "abort", "preempting", "hitting"):
        assert seen[what] > count // 10, f"too few programs with {what} for this to mean anything: {seen}"
    assert seen["ties"] <= 1 + seen["tokens"] // 20_000
    case("EX7", count, **seen)


@pytest.fixture
def mistake(monkeypatch):
    """A cache that forgets whose prefix it holds: with adapters, others' keys and values are taken for one's own."""
    with monkeypatch.context() as patch:
        patch.setattr(kv_cache, "_root", lambda sequence: b"the same for all")
        yield patch


def test_a_mistake_is_found(laboratory, mistake, case):
    """EX7 can fail."""
    with pytest.raises(Wrong, match="alone"):
        walks(laboratory, range(100))
    case("EX7", 0, mistakes_found=1)


@pytest.mark.full
def test_a_mistake_is_shrunk_and_replayed(laboratory, mistake, case, tmp_path):
    """EX7 can fail, and its failures are small."""
    file = tmp_path / "trace.json"
    with pytest.raises(Wrong):
        hypothesis_programs(laboratory, file, 200)
    trace = Trace.read(file)
    with pytest.raises(Wrong):
        replay(laboratory, trace)
    assert len([what for what, _ in trace.actions if what == "add"]) <= 6
    mistake.undo()
    replay(laboratory, trace)
    case("EX7", 0, mistakes_found=1)
