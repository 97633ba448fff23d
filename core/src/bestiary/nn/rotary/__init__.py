"""Rotary position embedding: `get_rope` makes the layer, `frequencies` knows the scalings."""

from .embedding import RotaryEmbedding
from .factory import get_rope

__all__ = ["RotaryEmbedding", "get_rope"]
