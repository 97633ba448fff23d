"""Expert load balancing while serving: every rank counts, decides and moves by itself, and all do the same.

The ranks of a stage see the same tokens and take the same plans in the same order, so "before the n-th plan" is the
same moment for all of them: their earlier plans are computed, the next one has not begun, and what other stages or
copies of the model are doing meanwhile touches none of these weights. There every rank adds up what was counted, and
computes the same placements (`nn/moe/balance.py`), one layer a step, so that no step waits for all of them.
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

from .team import Team

GAIN = 0.05
"""A layer's experts move if its busiest rank then has at least this part less to do."""


class _Moved(NamedTuple):
    layer_name: str
    before: float
    after: float


class ExpertBalancer:
    """Balances the experts of this rank's layers among the ranks of its stage.

    Attributes:
        layers: whose experts may move. turns: layers to be considered, one a step, each with its load.
    """

    def __init__(self, model: nn.Module, team: Team) -> None:
        config = team.parallel.eplb_config
        self.group: Any = team.groups.expert
        self.interval = config.step_interval
        self.layers = mixtures(model)
        self.turns: deque[tuple[FusedMoE, list[int]]] = deque()
        self._moved: list[_Moved] = []
        self._steps = 0
        self._speaks = team.leads
        for layer in self.layers:
            refuse_unlike_slots(layer)
            layer.load = ExpertLoad(layer.num_experts, config.window_size, layer.physical_ids.device)

    def begin_step(self) -> None:
        """Called by every rank of the stage before it computes its next plan."""
        if self._steps and self._steps % self.interval == 0 and not self.turns:
            self.turns.extend(zip(self.layers, self._counted(), strict=True))
        if self.turns:
            self._take_a_turn()
        for layer in self.layers:
            if layer.load is not None:
                layer.load.begin_step()
        self._steps += 1

    def _take_a_turn(self) -> None:
        """Consider the next layer that is out of balance; after the last one, say what was done."""
        considered = False
        while self.turns and not considered:
            layer, loads = self.turns.popleft()
            before = imbalance(layer.placement, loads)
            considered = before * (1 - GAIN) > 1
            if considered:
                self._improve(layer, loads, before)
        if not self.turns and self._moved:
            if self._speaks:
                notice(_said(self._moved, len(self.layers), self._steps))
            self._moved = []

    def _improve(self, layer: FusedMoE, loads: Sequence[int], before: float) -> None:
        placement = rebalanced(layer.placement, loads)
        after = imbalance(placement, loads)
        if after <= before * (1 - GAIN):
            move_experts(layer, placement, self.group)
            self._moved.append(_Moved(layer.layer_name, before, after))

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


def _said(moved: Sequence[_Moved], layers: int, step: int) -> str:
    names = [each.layer_name for each in moved]
    numbers = ", ".join(next((part for part in name.split(".") if part.isdecimal()), name) for name in names)
    before, after = (sum(column) / len(moved) for column in zip(*((m.before, m.after) for m in moved), strict=True))
    return (
        f"experts moved in {len(moved)} of {layers} layers ({numbers}), up to step {step}: their busiest rank had "
        f"{before:.2f} times an even share of the load, and now has {after:.2f} (at least {GAIN:.0%} less is worth it)"
    )
