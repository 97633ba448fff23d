"""From checkpoint tensors to parameters: names, fused shards, completeness."""

from .auto import AutoWeightsLoader, packed_parts
from .complete import load_complete
from .fill import ShardId, default_weight_loader, fill, set_weight_attrs
from .mapper import ShardedName, WeightsMapper

__all__ = [
    "AutoWeightsLoader",
    "ShardId",
    "ShardedName",
    "WeightsMapper",
    "default_weight_loader",
    "fill",
    "load_complete",
    "packed_parts",
    "set_weight_attrs",
]
