"""Expert load balancing while serving: every rank counts, decides and moves by itself, and all do the same.

The ranks of a stage see the same tokens and take the same plans in the same order, so "before the n-th plan" is the
same moment for all of them: their earlier plans are computed, the next one has not begun, and what other stages or
copies of the model are doing meanwhile touches none of these weights. There every rank adds up what was counted, and
computes the same placements (`nn/moe/balance.py`). Layers move one a step, so that no step waits for all of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from bestiary.api.config import VllmConfig
from bestiary.api.errors import UsageError
from bestiary.engine.notices import notice
from bestiary.nn import FusedMoE
from bestiary.nn.moe.balance import imbalance, rebalanced
from bestiary.nn.moe.load import ExpertLoad
from bestiary.nn.moe.moving import move_experts, refuse_unlike_slots
from bestiary.nn.moe.placement import ExpertPlacement

from .team import Team

GAIN = 0.05
"""A layer's experts move if its busiest rank then has at least this part less to do."""


class _Change(NamedTuple):
    layer: FusedMoE
    placement: ExpertPlacement
    before: float
    after: float


class ExpertBalancer:
    """Balances the experts of this rank's layers among the ranks of its stage."""

    def __init__(self, model: nn.Module, team: Team) -> None:
        config = team.parallel.eplb_config
        self.group: Any = team.groups.expert
        self.interval, self.window = config.step_interval, config.window_size
        self.layers = mixtures(model)
        self.pending: deque[_Change] = deque()
        self.steps = 0
        self._speaks = team.leads
        for layer in self.layers:
            refuse_unlike_slots(layer)
            layer.load = ExpertLoad(layer.num_experts, config.window_size, layer.physical_ids.device)

    def begin_step(self) -> None:
        """Called by every rank of the stage before it computes its next plan."""
        if self.steps and self.steps % self.interval == 0:
            self._look()
        if self.pending:
            change = self.pending.popleft()
            move_experts(change.layer, change.placement, self.group)
        for layer in self.layers:
            if layer.load is not None:
                layer.load.begin_step()
        self.steps += 1

    def _look(self) -> None:
        """Decide anew; what was decided before and did not happen yet is forgotten."""
        found = [_change(layer, loads) for layer, loads in zip(self.layers, self._counted(), strict=True)]
        self.pending = deque(change for change in found if change is not None)
        if self.pending and self._speaks:
            notice(_said(self.pending, len(self.layers), self.steps, min(self.window, self.steps)))

    def _counted(self) -> list[list[int]]:
        """Tokens of every expert, by layer; added up over ranks, so that a router's rounding cannot part them."""
        totals = [layer.load.total() for layer in self.layers if layer.load is not None]
        if not totals:
            return []
        summed = self.group.all_reduce(torch.cat(totals)).cpu()
        return [part.tolist() for part in summed.split([len(each) for each in totals])]


def mixtures(model: nn.Module) -> list[FusedMoE]:
    """The layers whose experts lie on several ranks."""
    found = [module for module in model.modules() if isinstance(module, FusedMoE)]
    return [layer for layer in found if layer.placement.num_ranks > 1]


def check_eplb(model: nn.Module, config: VllmConfig) -> None:
    """Refuse load balancing where it has nothing to do, or would break a promise. For models just built.

    Raises:
        UsageError: the model has no experts, or answers must not depend on what else was computed.
    """
    if not config.parallel_config.enable_eplb:
        return
    if config.model_config.deterministic:
        raise UsageError(
            "experts that move change the order of sums, and so the last bits of answers, with the load",
            field="enable_eplb", value=True, limit="False in deterministic mode", fix="leave out one of the two",
        )  # fmt: skip
    if not mixtures(model) and not getattr(model, "is_mixture_of_experts", False):
        raise UsageError(
            f"{config.model_config.architecture} has no experts to balance", field="enable_eplb", value=True,
            limit="models of experts", fix="leave it out",
        )  # fmt: skip


def _change(layer: FusedMoE, loads: Sequence[int]) -> _Change | None:
    """The better placement for measured loads; None where it gains too little."""
    placement = rebalanced(layer.placement, loads)
    before, after = imbalance(layer.placement, loads), imbalance(placement, loads)
    return _Change(layer, placement, before, after) if after <= before * (1 - GAIN) else None


def _said(changes: Sequence[_Change], layers: int, step: int, window: int) -> str:
    names = [change.layer.layer_name for change in changes]
    numbers = ", ".join(next((part for part in name.split(".") if part.isdecimal()), name) for name in names)
    before, after = (sum(column) / len(changes) for column in zip(*((c.before, c.after) for c in changes), strict=True))
    return (
        f"step {step}: experts move in {len(changes)} of {layers} layers ({numbers}), one layer a step; by the load of "
        f"the last {window} steps their busiest rank had {before:.2f} times an even share, and then {after:.2f} "
        f"(at least {GAIN:.0%} less is worth it)"
    )
