"""Pooling: from hidden states to one vector a prompt."""

from .metadata import Partial, PoolingItem, PoolingMetadata
from .methods import CLSPool, LastPool, MeanPool, PoolingMethod
from .poolers import DispatchPooler, Pooler, SequencePooler, pooler_for_classify, pooler_for_embed

__all__ = [
    "CLSPool",
    "DispatchPooler",
    "LastPool",
    "MeanPool",
    "Partial",
    "Pooler",
    "PoolingItem",
    "PoolingMetadata",
    "PoolingMethod",
    "SequencePooler",
    "pooler_for_classify",
    "pooler_for_embed",
]
