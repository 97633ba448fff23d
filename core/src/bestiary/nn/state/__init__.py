"""Layers that keep a state of each sequence, whose size does not grow with it."""

from .base import CausalConv1d, StateLayer
from .delta_net import GatedDeltaNetAttention, OlmoHybridGatedDeltaNetAttention
from .gated_norm import Mixer2RMSNormGated, RMSNormGated, ShardedGroupRMSNorm
from .kimi_delta import KimiDeltaAttention
from .linear_attention import BailingMoELinearAttention, LightningAttention
from .mamba import MambaMixer
from .mamba2 import MambaMixer2
from .short_conv import ShortConv
from .spec import StateSpec, read_states, write_states

__all__ = [
    "BailingMoELinearAttention",
    "CausalConv1d",
    "GatedDeltaNetAttention",
    "KimiDeltaAttention",
    "LightningAttention",
    "MambaMixer",
    "MambaMixer2",
    "Mixer2RMSNormGated",
    "OlmoHybridGatedDeltaNetAttention",
    "RMSNormGated",
    "ShardedGroupRMSNorm",
    "ShortConv",
    "StateLayer",
    "StateSpec",
    "read_states",
    "write_states",
]
