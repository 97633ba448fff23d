"""Who runs a plan. One process alone is the only executor here; others keep the same two methods."""

from __future__ import annotations

from typing import Protocol

from bestiary.api.errors import EngineError

from .plan import StepPlan, StepResult
from .runner import ModelRunner


class Executor(Protocol):
    """Takes plans in order and returns their results. `shutdown` releases whatever it holds; it may be called twice."""

    def execute(self, plan: StepPlan) -> StepResult: ...

    def shutdown(self) -> None: ...


class UniprocExecutor:
    """Runs plans in the calling process."""

    def __init__(self, runner: ModelRunner) -> None:
        self.runner: ModelRunner | None = runner

    def execute(self, plan: StepPlan) -> StepResult:
        if self.runner is None:
            raise EngineError("this engine was shut down", code="CLOSED", fix="make a new LLM")
        return self.runner.execute(plan)

    def shutdown(self) -> None:
        self.runner = None
