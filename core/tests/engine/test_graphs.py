"""Which recorder an engine's decode steps have, or why none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from bestiary.api.sampling import SamplingParams
from bestiary.engine.batch import ForwardBatch
from bestiary.engine.decode_input import DecodeInput
from bestiary.engine.graphs import StepGraphs, choose_recorder
from bestiary.engine.plan import NewRequest, ScheduledItem, StepPlan
from bestiary.engine.request_state import RequestState
from bestiary.nn.context import ForwardContext, forward_context
from bestiary.nn.cuda.graphs import CudaGraphs
from bestiary.nn.graphs import Results
from bestiary.nn.ops.registry import Target
from bestiary.nn.rotary import get_rope

CPU = Target("cpu", torch.float32)


@dataclass
class Backend:
    name: str
    recordable: bool = True


class Anywhere:
    name = "anywhere"

    @staticmethod
    def why_not(target: Target) -> str | None:
        return None


class Elsewhere(Anywhere):
    name = "elsewhere"

    @staticmethod
    def why_not(target: Target) -> str | None:
        return f"not on {target.device}"


@pytest.mark.parametrize(
    ("offered", "backends", "found"),
    [
        ({"e": Elsewhere, "a": Anywhere}, [Backend("fixed")], (Anywhere, "")),
        ({}, [Backend("fixed")], (None, "no package in use offers a recorder")),
        ({"e": Elsewhere}, [Backend("fixed")], (None, "e: not on cpu")),
        ({"a": Anywhere}, [Backend("fixed"), Backend("torch", False)],
         (None, "attention by torch looks at the host's numbers")),
        ({"a": Anywhere}, [None], (None, "attention by none looks at the host's numbers")),
    ],
)  # fmt: skip
def test_choice(offered: Any, backends: Any, found: Any) -> None:
    assert choose_recorder(offered, CPU, backends) == found


def test_sizes_that_cuda_graphs_have() -> None:
    sizes = [CudaGraphs.padded(rows) for rows in range(1, 1025)]
    assert all(size >= rows for rows, size in enumerate(sizes, 1))
    assert sizes == sorted(sizes)
    assert sizes[:9] == [1, 2, 4, 4, 8, 8, 8, 8, 16]
    assert (sizes[127], sizes[128], sizes[512]) == (128, 160, 640)
    assert CudaGraphs.why_not(CPU) == "for CUDA"


class WarmsUp(Anywhere):
    """Runs a step once before the run that it records, and replays by running what was recorded: here, all of it."""

    def record(self, step: Callable[[], Results]) -> tuple[Results, Callable[[], Results]]:
        step()
        return step(), step


def test_a_step_is_recorded_whole_though_it_ran_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """What layers share within a step must be computed anew in the run that is recorded."""
    graphs = StepGraphs(WarmsUp(), DecodeInput(1, 4, 16))
    rope = get_rope(8, max_position=64, base=10000.0)
    gathered: list[torch.Tensor] = []
    gather = rope._gather

    def noted(positions: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        gathered.append(positions.clone())
        return gather(positions, dtype)

    monkeypatch.setattr(rope, "_gather", noted)

    def compute(batch: ForwardBatch) -> Results:
        with forward_context(ForwardContext(batch.attention, {})):
            return (rope.rows(batch.positions, torch.float32)[0].clone(),)

    state = RequestState(NewRequest("a", (7,) * 20, SamplingParams(), 0))
    for start in (19, 3):
        item = ScheduledItem("a", start, 1, (0, 1), True)
        batch = graphs.take(StepPlan(0, (item,)), {"a": state}, {})
        assert batch is not None
        (found,) = graphs.run(batch, compute, lambda: pytest.fail("the step can be recorded"))
        assert torch.equal(found, gather(torch.tensor([start]), torch.float32)[0])
    assert [each.tolist() for each in gathered] == [[19], [19], [3]]
