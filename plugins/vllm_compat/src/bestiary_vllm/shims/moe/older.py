"""The classes of earlier versions: experts as a module of their own, with or without what surrounds them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .experts import Experts
from .runner import FusedMoEFactory, Surroundings
from .settings import experts_settings

_PARTS = {"routed_experts_cls", "routed_experts_args", "runner_cls", "runner_args"}


class FusedMoE(Experts):
    """Experts whose parameters are the module's own.

    Until 0.15 files say whether the sum over ranks is taken here (`reduce_results`); later ones leave that to it. With
    classes for its parts, as in 0.25, it is `FusedMoEFactory`.
    """

    def __new__(cls, *arguments: Any, **options: Any) -> Any:
        if cls is FusedMoE and not _PARTS.isdisjoint(options):
            return FusedMoEFactory(*arguments, **options)
        return super().__new__(cls)

    def __init__(
        self, num_experts: int, top_k: int, hidden_size: int, intermediate_size: int, *arguments: Any,
        reduce_results: bool = True, zero_expert_num: int | None = None, **options: Any,
    ) -> None:  # fmt: skip
        """`arguments`: params_dtype, and then `reduce_results`, as they stood in order until 0.15."""
        around = Surroundings.taken_from(options)
        settings, transposed = experts_settings(options)
        for name, value in zip(("params_dtype", "reduce_results"), arguments, strict=False):
            settings[name] = value
        settings.setdefault("reduce_results", reduce_results)
        super().__init__(num_experts, top_k, hidden_size, intermediate_size, **settings)
        self._around, self.is_transposed = around, transposed

    @property
    def is_internal_router(self) -> bool:
        """Whether logits need not be given."""
        return self._around.gate is not None

    def forward(
        self, hidden_states: torch.Tensor, router_logits: torch.Tensor | None = None, **more: Any
    ) -> torch.Tensor | Any:
        return self._around.answer(self, hidden_states, router_logits, self.reduce_results)


class SharedFusedMoE(FusedMoE):
    """Experts beside shared ones: answers with (what the shared ones say, what the routed ones say)."""

    def __init__(
        self, shared_experts: nn.Module | None = None, gate: nn.Module | None = None, use_overlapped: bool = True,
        reduce_results: bool = False, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(gate=gate, reduce_results=reduce_results, **options)
        self._pair = Surroundings(shared_experts=shared_experts)

    def forward(self, hidden_states: torch.Tensor, router_logits: torch.Tensor | None = None, **more: Any) -> Any:
        routed = super().forward(hidden_states, router_logits)
        shared = self._pair.shared(hidden_states)
        if shared is not None and self.reduce_results and self.group.world_size > 1:
            shared = self.group.all_reduce(shared)
        return shared, routed


class ZeroExpertFusedMoE(FusedMoE):
    """Experts of which some give a token back as it is, with the router whose bias knows of them."""

    def __init__(self, zero_expert_num: int, zero_expert_type: str, router: nn.Module, **options: Any) -> None:
        options["e_score_correction_bias"] = getattr(router, "e_score_correction_bias", None)
        super().__init__(zero_expert_type=zero_expert_type, **options)
