"""Who runs a plan: this process alone, here, or with others (`parallel/executor.py`)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from bestiary.api.errors import EngineError
from bestiary.api.lora import LoRAInfo
from bestiary.api.structured import StructuredOutputBackend

from .pending import Begun, drop, settle, told
from .plan import StepPlan, StepResult
from .runner import ModelRunner


class Executor(Protocol):
    """Takes plans in order and gives their results in order; several may be on their way (a pipeline).

    `copy` counts copies of the model (data parallelism). `add_adapter` reads an adapter, checks that it fits this
    rank's part of the model, and keeps it, or changes nothing and raises; plans name it by the id in its `LoRAInfo`
    until `remove_adapter`. `shutdown` releases whatever is held; it may be called twice.
    """

    def launch(self, plan: StepPlan, copy: int = 0) -> None: ...

    def collect(self, plan: StepPlan, copy: int = 0) -> StepResult:
        """The result of `plan`, the oldest one launched."""
        ...

    def add_adapter(self, name: str, path: str) -> LoRAInfo: ...

    def remove_adapter(self, lora_id: str) -> None: ...

    def use_backend(self, make: Callable[[], StructuredOutputBackend]) -> None:
        """See `ModelRunner.use_backend`."""
        ...

    def shutdown(self) -> None: ...


class UniprocExecutor:
    """Runs plans in the calling process, when they are launched. `ahead`: on a device that computes by itself, tokens
    are asked for only when they are collected."""

    def __init__(self, runner: ModelRunner, ahead: bool = False) -> None:
        self.runner: ModelRunner | None = runner
        self.ahead = ahead
        self._begun: deque[Begun] = deque()

    def launch(self, plan: StepPlan, copy: int = 0) -> None:
        runner = live(self.runner)
        if not self.ahead:
            self._begun.append(Begun(plan, None, runner.execute(plan)))
        elif self._begun and self._begun[-1].error is not None:  # nothing can be begun upon what failed
            self._begun.append(Begun(plan, None, error=self._begun[-1].error))
        else:
            begun = runner.begin(plan)
            if begun.batch is not None and begun.result is not None:
                runner.record(begun.batch, begun.result)
            self._begun.append(begun)

    def collect(self, plan: StepPlan, copy: int = 0) -> StepResult:
        try:
            result = settle(self._begun[0], told(self._begun[0]))
        except BaseException:
            for begun in self._begun:
                drop(begun)
            self._begun.clear()  # what was begun upon a step that failed is nothing
            raise
        self._begun.popleft()
        for begun in self._begun:
            self._draw(begun)
        return result

    def _draw(self, begun: Begun) -> None:
        """Draw what was begun upon tokens that are known now. What is raised is that step's, not this one's."""
        try:
            live(self.runner).draw_begun(begun)
        except BaseException as cause:
            begun.error = cause

    def add_adapter(self, name: str, path: str) -> LoRAInfo:
        return live(self.runner).add_adapter(name, path)

    def remove_adapter(self, lora_id: str) -> None:
        live(self.runner).remove_adapter(lora_id)

    def use_backend(self, make: Callable[[], StructuredOutputBackend]) -> None:
        live(self.runner).use_backend(make)

    def shutdown(self) -> None:
        if self.runner is not None:
            self.runner.close()
        self.runner = None


def live(runner: ModelRunner | None) -> ModelRunner:
    """The runner, unless its executor was shut down."""
    if runner is None:
        raise EngineError("this engine was shut down", code="CLOSED", fix="make a new LLM")
    return runner
