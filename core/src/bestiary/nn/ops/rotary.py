"""The rotary op: turn pairs of query and key channels by angles that the caller has gathered once for the step."""

from __future__ import annotations

import torch
from torch import Tensor

from .registry import op


@op
def rotary_angles(table: Tensor, positions: Tensor, is_neox_style: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows `positions` (int64 ``[tokens]``) of a table ``[length, rotary_dim]``, which has the cosines of all pairs and
    then their sines: cosines and signed sines in `dtype`, each ``[tokens, 1, rotary_dim]``, as `rotary_embedding` takes
    them."""
    cos, sin = table[positions].unsqueeze(1).to(dtype).chunk(2, -1)
    if is_neox_style:
        return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
    return cos.repeat_interleave(2, -1), torch.stack((-sin, sin), -1).flatten(-2)


@op
def rotary_embedding(
    query: Tensor, key: Tensor | None, cos: Tensor, sin: Tensor, head_size: int, is_neox_style: bool
) -> tuple[Tensor, Tensor | None]:
    """Rotate the first ``cos.shape[-1]`` channels of every head (arXiv 2104.09864).

    Args:
        query, key: flat, ``[tokens, heads * head_size]``; key may be None. Neither is changed.
        cos, sin: ``[tokens, 1, rotary_dim]`` in the layout's channel order; `sin` is negative on the first channel of
            each pair, so that a channel becomes ``x * cos + partner * sin``. Where they are wider than the query (fp32
            over bf16) the rotation is done in their dtype and rounded once.
        is_neox_style: channel i is paired with ``i + rotary_dim / 2``; otherwise neighbours are paired (GPT-J).

    Rounds as transformers does: both products, then the sum, in the dtype of `cos`.
    """
    rotated_key = None if key is None else _rotate(key, cos, sin, head_size, is_neox_style)
    return _rotate(query, cos, sin, head_size, is_neox_style), rotated_key


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, head_size: int, is_neox_style: bool) -> Tensor:
    rotary_dim = cos.shape[-1]
    heads = x.reshape(x.shape[0], -1, head_size)
    if rotary_dim == head_size:
        return _turn(heads, cos, sin, is_neox_style).reshape(x.shape)
    turned = _turn(heads[..., :rotary_dim], cos, sin, is_neox_style)
    return torch.cat((turned, heads[..., rotary_dim:]), -1).view(x.shape)


def _turn(x: Tensor, cos: Tensor, sin: Tensor, is_neox_style: bool) -> Tensor:
    if is_neox_style:
        partner = x.roll(x.shape[-1] // 2, -1)
    else:
        partner = x.reshape(*x.shape[:-1], -1, 2).flip(-1).reshape(x.shape)
    turned = (x * cos).add_(partner * sin)
    return turned if turned.dtype is x.dtype else turned.to(x.dtype)
