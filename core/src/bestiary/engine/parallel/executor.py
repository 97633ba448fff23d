"""`RankExecutor`: this rank's part of every plan.

The first stage embeds, each stage sends its hidden states to the same place in the next one, the last stage's first
rank draws the tokens, or has the vectors, and shows them to all. Sending does not wait, so a stage begins its next plan
while the following stage computes this one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import torch

from bestiary.api.errors import EngineError
from bestiary.api.intermediate import IntermediateTensors
from bestiary.api.lora import LoRAInfo
from bestiary.api.structured import StructuredOutputBackend
from bestiary.engine.batch import ForwardBatch
from bestiary.engine.executor import live
from bestiary.engine.plan import StepPlan, StepResult
from bestiary.engine.runner import ModelRunner
from bestiary.engine.stage import Made

from .eplb import ExpertBalancer
from .messages import Drawn, checksum
from .team import Team


class RankExecutor:
    """The executor of one of several ranks; all of them launch and collect the same plans in the same order."""

    def __init__(self, runner: ModelRunner, team: Team) -> None:
        self.runner: ModelRunner | None = runner
        self.team = team
        self._launched: deque[tuple[ForwardBatch | None, Drawn | None]] = deque()
        self.balancer = ExpertBalancer(runner.model, team) if team.parallel.enable_eplb else None

    def launch(self, plan: StepPlan, copy: int = 0) -> None:
        runner = live(self.runner)
        if copy != self.team.own:
            return
        batch = runner.prepare(plan)
        self._launched.append((batch, None if batch is None else self._run(runner, plan, batch)))

    def collect(self, plan: StepPlan, copy: int = 0) -> StepResult:
        batch, drawn = self._launched.popleft() if copy == self.team.own else (None, None)
        if not plan.items:
            return StepResult(plan.step, {})
        drawn = self.team.exchange(copy, drawn)
        if (drawn.step, drawn.check) != (plan.step, checksum(plan)):
            raise EngineError(
                f"rank {self.team.rank} derived another plan than the one whose tokens were drawn",
                code="RANKS_DISAGREE", field=f"step {plan.step}",
                fix="ranks that run a script of yours must make the same calls in the same order",
            )  # fmt: skip
        result = drawn.result
        if batch is not None and self.runner is not None:
            self.runner.record(batch, result)
        return result

    def add_adapter(self, name: str, path: str) -> LoRAInfo:
        return live(self.runner).add_adapter(name, path)

    def remove_adapter(self, lora_id: str) -> None:
        live(self.runner).remove_adapter(lora_id)

    def use_backend(self, make: Callable[[], StructuredOutputBackend]) -> None:
        live(self.runner).use_backend(make)

    def shutdown(self) -> None:
        if self.runner is not None:
            self.runner.close()
            if self.runner.graphs is not None:
                self.runner.graphs.forget()  # recorded steps hold the connections that the team ends
        self.runner = None
        self._launched.clear()
        self.team.close()

    def _run(self, runner: ModelRunner, plan: StepPlan, batch: ForwardBatch) -> Drawn | None:
        if self.balancer is not None:
            self.balancer.begin_step()
        made = run_stage(runner, plan, batch)
        if not runner.draws:
            return None
        return Drawn.of(plan, runner.draw(plan, batch, made))


@torch.inference_mode()
def run_stage(runner: ModelRunner, plan: StepPlan, batch: ForwardBatch, *, all_logits: bool = False) -> Made:
    """This rank's part of a step: receive, compute, send on. What the last stage made, None from the others."""
    pipeline: Any = runner.groups.pipeline
    if pipeline.world_size == 1:
        return runner.made_of(batch, plan, all_logits=all_logits)
    received = None if pipeline.is_first_rank else _received(runner, batch, pipeline)
    out = runner.stage.compute(batch, received, all_logits=all_logits)
    if not isinstance(out, IntermediateTensors):
        return out
    pipeline.wait_for_sends()
    for _, tensor in sorted(out.items()):
        pipeline.send(tensor, pipeline.rank + 1)
    return None


def _received(runner: ModelRunner, batch: ForwardBatch, pipeline: Any) -> IntermediateTensors:
    tensors = runner.stage.empty(batch)
    for _, tensor in sorted(tensors.items()):
        pipeline.receive(tensor, pipeline.rank - 1)
    return tensors
