"""How much each expert of a layer is used: counted while steps run, kept for a window of steps."""

from __future__ import annotations

import torch


class ExpertLoad:
    """Tokens that chose each expert of one layer, in each of the last `window` steps."""

    def __init__(self, num_experts: int, window: int, device: torch.device) -> None:
        self._steps = torch.zeros(window, num_experts, dtype=torch.int32, device=device)
        self._now = 0

    def begin_step(self) -> None:
        """What is counted from now on belongs to another step, the oldest of the window is forgotten."""
        self._now = (self._now + 1) % len(self._steps)
        self._steps[self._now].zero_()

    def count(self, ids: torch.Tensor) -> None:
        """Add logical expert ids, int64 of any shape, −1 for none. Waits for no device."""
        chosen = ids.flatten()
        self._steps[self._now].scatter_add_(0, chosen.clamp_min(0), (chosen >= 0).to(torch.int32))

    def total(self) -> torch.Tensor:
        """int64 ``[experts]``: tokens of each expert in the window."""
        return self._steps.sum(0)
