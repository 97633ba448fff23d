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
from bestiary.engine.pending import Begun, settle, told
from bestiary.engine.plan import StepPlan, StepResult
from bestiary.engine.runner import ModelRunner
from bestiary.engine.stage import Made

from .eplb import ExpertBalancer
from .messages import Drawn, checksum
from .team import Team


class RankExecutor:
    """The executor of one of several ranks; all of them launch and collect the same plans in the same order."""

    def __init__(self, runner: ModelRunner, team: Team, ahead: bool = False) -> None:
        self.runner: ModelRunner | None = runner
        self.team, self.ahead = team, ahead
        self._launched: deque[Begun] = deque()
        self.balancer = ExpertBalancer(runner.model, team) if team.parallel.enable_eplb else None

    def launch(self, plan: StepPlan, copy: int = 0) -> None:
        runner = live(self.runner)
        if copy != self.team.own:
            return
        if self.balancer is not None and plan.items:
            self.balancer.begin_step()
        self._launched.append(runner.begin(plan) if self.ahead else self._whole(runner, plan))

    def collect(self, plan: StepPlan, copy: int = 0) -> StepResult:
        begun = self._launched.popleft() if copy == self.team.own else None
        if not plan.items:
            return StepResult(plan.step, {})
        draws = begun is not None and self.runner is not None and self.runner.draws
        drawn = self.team.exchange(copy, Drawn.of(plan, told(begun)) if draws and begun is not None else None)
        if (drawn.step, drawn.check) != (plan.step, checksum(plan)):
            raise EngineError(
                f"rank {self.team.rank} derived another plan than the one whose tokens were drawn",
                code="RANKS_DISAGREE", field=f"step {plan.step}",
                fix="ranks that run a script of yours must make the same calls in the same order",
            )  # fmt: skip
        if begun is not None and self.runner is not None:
            self._record(self.runner, begun, drawn.result)
        return drawn.result

    def _record(self, runner: ModelRunner, begun: Begun, result: StepResult) -> None:
        if begun.queued is not None:
            settle(begun, result)
        elif begun.batch is not None:
            runner.record(begun.batch, result)
        for later in self._launched:
            runner.draw_begun(later)

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

    def _whole(self, runner: ModelRunner, plan: StepPlan) -> Begun:
        """A step that is over, on the rank that draws, when this returns."""
        batch = runner.prepare(plan)
        if batch is None:
            return Begun(plan, None)
        made = run_stage(runner, plan, batch)
        return Begun(plan, batch, runner.draw(plan, batch, made) if runner.draws else None)


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
