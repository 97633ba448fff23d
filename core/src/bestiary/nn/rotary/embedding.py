"""The rotary layer: a table of cosines and sines, and the rows of it that the running step needs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bestiary.api.errors import EngineError
from bestiary.nn.context import get_forward_context_or_none
from bestiary.nn.ops.rotary import rotary_angles, rotary_embedding

from .frequencies import Frequencies


class RotaryEmbedding(nn.Module):
    """Rotates queries and keys by their positions.

    Layers of equal parameters share one instance, and within a forward pass the rows of the table are gathered once, by
    the first layer that asks: they are kept with the step's attention metadata and go with it.

    Attributes:
        cos_sin_cache: fp32 ``[length, rotary_dim]``, the cosines of all pairs and then their sines; not in checkpoints.
        owner: the configuration whose build scope shares this layer.
        dtype: rotation is done in this dtype, or in the query's where it is None.
    """

    cos_sin_cache: Tensor
    owner: object = None

    def __init__(
        self,
        head_size: int,
        length: int,
        is_neox_style: bool,
        frequencies: Frequencies,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.head_size = head_size
        self.rotary_dim = 2 * frequencies.inv_freq.shape[-1]
        self.max_position_embeddings = length
        self.is_neox_style = is_neox_style
        self.dtype = dtype
        angles = torch.arange(length).float()[:, None] * frequencies.inv_freq
        scale = frequencies.attention_factor
        table = torch.cat((angles.cos() * scale, angles.sin() * scale), -1).flatten(0, -2)
        self.register_buffer("cos_sin_cache", table, persistent=False)

    def forward(self, positions: Tensor, query: Tensor, key: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Rotate ``[tokens, heads * head_size]`` or ``[tokens, heads, head_size]``, each to its own shape; `positions`
        is int64 ``[tokens]``."""
        cos, sin = self.rows(positions, self.dtype or query.dtype)
        flat_key = None if key is None else key.flatten(1)
        turned, turned_key = rotary_embedding(query.flatten(1), flat_key, cos, sin, self.head_size, self.is_neox_style)
        if key is not None and turned_key is not None:
            turned_key = turned_key.view(key.shape)
        return turned.view(query.shape), turned_key

    def rows(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines of `positions`, each ``[tokens, 1, rotary_dim]``, as the rotary op takes them."""
        context = get_forward_context_or_none()
        if context is None:
            return self._gather(positions, dtype)
        kept = context.attention.derived.get((self, dtype))
        if kept is None or kept[0] is not positions:
            kept = (positions, *self._gather(positions, dtype))
            context.attention.derived[self, dtype] = kept
        return kept[1], kept[2]

    def _gather(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        if positions.dim() != 1:
            raise EngineError(
                "rotary embedding takes one position a token", value=tuple(positions.shape), limit="shape [tokens]"
            )
        return rotary_angles(self.cos_sin_cache, positions, self.is_neox_style, dtype)

    def extra_repr(self) -> str:
        style = "neox" if self.is_neox_style else "interleaved"
        return (
            f"head_size={self.head_size}, rotary_dim={self.rotary_dim}, length={self.max_position_embeddings}, {style}"
        )
