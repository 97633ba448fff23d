"""The built-in step observer."""

from __future__ import annotations

from dataclasses import dataclass

from .plan import StepPlan


@dataclass(slots=True)
class StepCounter:
    """Totals since the engine started: steps, tokens computed, seconds spent executing."""

    steps: int = 0
    computed_tokens: int = 0
    seconds: float = 0.0

    def on_step(self, plan: StepPlan, seconds: float) -> None:
        self.steps += 1
        self.computed_tokens += plan.num_tokens
        self.seconds += seconds
