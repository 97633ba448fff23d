"""Step observers: whoever wants to see every plan and its result, found through the hook of that name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from .plan import StepPlan, StepResult


class StepObserver(Protocol):
    """Called after each step, in the engine's thread; must be quick and must not raise."""

    def after_step(self, plan: StepPlan, result: StepResult) -> None: ...


@dataclass(slots=True)
class StepCounter:
    """The built-in observer: totals since the engine started."""

    steps: int = 0
    computed_tokens: int = 0
    drawn_tokens: int = 0

    def after_step(self, plan: StepPlan, result: StepResult) -> None:
        self.steps += 1
        self.computed_tokens += plan.num_tokens
        self.drawn_tokens += len(result.sampled)
