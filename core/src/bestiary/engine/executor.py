"""Who runs a plan. One process alone is the only executor here; others keep the same two methods."""

from __future__ import annotations

from typing import Protocol

from bestiary.api.errors import EngineError
from bestiary.api.lora import LoRAInfo

from .plan import StepPlan, StepResult
from .runner import ModelRunner


class Executor(Protocol):
    """Takes plans in order and returns their results. `shutdown` releases whatever it holds; it may be called twice.

    `add_adapter` reads and checks an adapter on every rank, or changes nothing and raises; plans name it by the id that
    its `LoRAInfo` has, the same on all ranks, until `remove_adapter`.
    """

    def execute(self, plan: StepPlan) -> StepResult: ...

    def add_adapter(self, name: str, path: str) -> LoRAInfo: ...

    def remove_adapter(self, lora_id: str) -> None: ...

    def shutdown(self) -> None: ...


class UniprocExecutor:
    """Runs plans in the calling process."""

    def __init__(self, runner: ModelRunner) -> None:
        self.runner: ModelRunner | None = runner

    def execute(self, plan: StepPlan) -> StepResult:
        return self._open().execute(plan)

    def add_adapter(self, name: str, path: str) -> LoRAInfo:
        return self._open().add_adapter(name, path)

    def remove_adapter(self, lora_id: str) -> None:
        self._open().remove_adapter(lora_id)

    def _open(self) -> ModelRunner:
        if self.runner is None:
            raise EngineError("this engine was shut down", code="CLOSED", fix="make a new LLM")
        return self.runner

    def shutdown(self) -> None:
        self.runner = None
