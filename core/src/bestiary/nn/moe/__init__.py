"""Mixture of experts: the layer, its router's gate, and where experts lie."""

from .gate import GateLinear
from .layer import FusedMoE
from .placement import ExpertPlacement

__all__ = ["ExpertPlacement", "FusedMoE", "GateLinear"]
