"""The rules by which adapters are known and get slots, and how requests wait for one."""

import pytest

from bestiary.api.config import CacheConfig, LoRAConfig, SchedulerConfig
from bestiary.api.errors import RequestError, UsageError
from bestiary.api.lora import LoRAInfo, LoRARequest
from bestiary.api.sampling import SamplingParams
from bestiary.engine.adapters import Adapters, SlotTable
from bestiary.engine.scheduler import Scheduler
from bestiary.engine.sequence import Sequence
from bestiary.testing.paged_model import PagedModel


class Engine:
    """A scheduler with adapters a, b, c and few slots, stepped by hand."""

    def __init__(self, max_loras=1, **scheduler):
        self.adapters = Adapters(LoRAConfig(max_loras=max_loras))
        for name in "abc":
            self.adapters.add(LoRAInfo(name, "", "", 1, (), 0), pinned=True)
        self.scheduler = Scheduler(
            SchedulerConfig(**scheduler), CacheConfig(block_size=4), 64, 64, adapters=self.adapters
        )
        self.model = PagedModel(64, 4, lora_slots=max_loras)

    def add(self, name, adapter=None, tokens=3, priority=0):
        lora = None if adapter is None else f"{adapter}@"
        sampling = SamplingParams(max_tokens=tokens, ignore_eos=True)
        self.scheduler.add(Sequence(name, [5, 6, 7], sampling, lora_name=lora, priority=priority))

    def step(self):
        """The requests of the next step."""
        plan = self.scheduler.schedule()
        self.scheduler.update(plan, self.model.execute(plan))
        self.loads = [tuple(load) for load in plan.lora_loads]
        return "".join(item.request_id for item in plan.items)

    def steps(self, count):
        return [self.step() for _ in range(count)]


def test_requests_wait_for_a_slot_and_those_without_an_adapter_pass():
    engine = Engine()
    for name, adapter in (("1", "a"), ("2", "b"), ("3", None), ("4", "a"), ("5", None)):
        engine.add(name, adapter)
    assert engine.steps(3) == ["135", "135", "135"]  # 4 has 1's adapter, but would keep 2 waiting for ever
    assert engine.loads == []
    assert engine.step() == "2"
    assert engine.loads == [(0, "b@")]
    assert engine.steps(3) == ["2", "2", "4"]
    assert engine.loads == [(0, "a@")]


def test_as_many_adapters_as_slots_run_together():
    engine = Engine(max_loras=2)
    for name, adapter in (("1", "a"), ("2", "b"), ("3", "a"), ("4", "b")):
        engine.add(name, adapter)
    assert engine.step() == "1234"
    assert engine.loads == [(0, "a@"), (1, "b@")]
    assert engine.steps(3) == ["1234", "1234", ""]
    engine.add("5", "c")
    engine.add("6", "b")
    assert engine.step() == "56"
    assert engine.loads == [(0, "c@")]  # a was used longest ago


def test_a_better_priority_takes_the_slot_of_a_worse_one():
    engine = Engine()
    engine.add("1", "a", priority=5)
    engine.add("2", "a", priority=3)
    assert engine.step() == "21"
    engine.add("3", "b", priority=3)
    assert engine.step() == "21"  # 2 is no worse than 3
    engine.add("4", "c", priority=1)
    assert engine.steps(3) == ["4"] * 3
    assert engine.steps(2) == ["2", "3"]  # 2 had one token to go
    assert engine.scheduler.stats().preemptions == 2


def test_a_lost_step_says_its_loads_again():
    engine = Engine()
    engine.add("1", "a")
    plan = engine.scheduler.schedule()
    engine.scheduler.abandon(plan)
    again = engine.scheduler.schedule()
    assert plan.lora_loads == again.lora_loads == ((0, "a@"),)
    engine.scheduler.update(again, engine.model.execute(again))
    assert engine.scheduler.schedule().lora_loads == ()


def test_an_end_from_outside_frees_the_slot():
    engine = Engine()
    engine.add("1", "a", tokens=50)
    engine.add("2", "b")
    assert engine.step() == "1"
    engine.scheduler.abort("1")
    assert engine.step() == "2"
    assert [info.requests for info in engine.adapters.infos()] == [0, 1, 0]


def test_slots_are_reused_in_order_of_last_use():
    table = SlotTable(2)
    for name in "ab":
        table.hold(name)
    assert not table.has_place("c") and table.has_place("a")
    table.release("b")
    table.release("a")  # used last
    table.hold("c")
    assert (table.slot_of("a"), table.slot_of("b"), table.slot_of("c")) == (0, None, 1)
    assert [tuple(load) for load in table.take_loads()] == [(0, "a"), (1, "c")]
    table.release("c")
    table.forget("c")
    table.hold("d")
    assert table.slot_of("d") == 1


def test_without_a_configuration_nothing_is_counted():
    adapters, table = Adapters(), SlotTable(None)
    adapters.begin("x")
    adapters.end("x")
    table.hold("x")
    table.release("x")
    assert table.has_place("y") and table.take_loads() == ()


def test_names_and_room():
    adapters = Adapters(LoRAConfig(max_loras=1, max_cpu_loras=2))
    for name, pinned in (("kept", True), ("passing", False)):
        assert adapters.outgoing(name) is None
        adapters.add(LoRAInfo(name, f"/{name}", "d", 1, (), 0), pinned=pinned)
    assert adapters.outgoing("other") == "passing"
    assert adapters.outgoing("kept") == "kept"
    adapters.begin("passing@d")
    with pytest.raises(RequestError, match="TOO_MANY_ADAPTERS"):
        adapters.outgoing("other")
    with pytest.raises(RequestError, match="ADAPTER_IN_USE"):
        adapters.remove("passing")
    adapters.end("passing@d")
    assert adapters.find(LoRARequest("passing", lora_path="/elsewhere")) is None  # it may be replaced
    with pytest.raises(RequestError, match="ADAPTER_NAME_TAKEN"):
        adapters.find(LoRARequest("kept", lora_path="/elsewhere"))
    with pytest.raises(UsageError, match="max_cpu_loras"):
        LoRAConfig(max_loras=4, max_cpu_loras=3)
