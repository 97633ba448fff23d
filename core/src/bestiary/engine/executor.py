"""Who runs a plan: this process alone, here, or with others (`parallel/executor.py`)."""

from __future__ import annotations

from collections import deque
from typing import Protocol

from bestiary.api.errors import EngineError

from .plan import StepPlan, StepResult
from .runner import ModelRunner


class Executor(Protocol):
    """Takes plans in order and gives their results in order; several may be on their way (a pipeline).

    `copy` counts copies of the model (data parallelism). `shutdown` releases whatever is held; it may be called twice.
    """

    def launch(self, plan: StepPlan, copy: int = 0) -> None: ...

    def collect(self, plan: StepPlan, copy: int = 0) -> StepResult:
        """The result of `plan`, the oldest one launched."""
        ...

    def shutdown(self) -> None: ...


class UniprocExecutor:
    """Runs plans in the calling process, when they are launched."""

    def __init__(self, runner: ModelRunner) -> None:
        self.runner: ModelRunner | None = runner
        self._results: deque[StepResult] = deque()

    def launch(self, plan: StepPlan, copy: int = 0) -> None:
        if self.runner is None:
            raise EngineError("this engine was shut down", code="CLOSED", fix="make a new LLM")
        self._results.append(self.runner.execute(plan))

    def collect(self, plan: StepPlan, copy: int = 0) -> StepResult:
        return self._results.popleft()

    def shutdown(self) -> None:
        self.runner = None
