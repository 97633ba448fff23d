"""Ops on weights that stay in GGUF blocks: a product, and rows looked up.

Weights are uint8 ``[rows, bytes per row]``, contiguous, of one GGML type; a row is a whole number of blocks. The
references decode to fp32, round to the activations' dtype, as a dequantized model is, and compute with that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bestiary.api.ggml_types import GgmlType
from bestiary.nn.gguf.dequant import decode_rows

from .linear import linear
from .registry import op

_CHUNK_ELEMENTS = 1 << 20
"""Weights decoded at once: 4 MiB of fp32, whatever the layer's size."""


class BlockRows(NamedTuple):
    """Rows of one type that lie together in a weight; `start` in bytes."""

    type: GgmlType
    start: int
    rows: int
    row_bytes: int

    def of(self, weight: Tensor) -> Tensor:
        """uint8 ``[rows, row_bytes]``."""
        return weight.view(-1)[self.start : self.start + self.rows * self.row_bytes].view(self.rows, self.row_bytes)


@op
def linear_gguf(x: Tensor, weight: Tensor, runs: Sequence[BlockRows], bias: Tensor | None = None) -> Tensor:
    """``[..., in] × blocks of `runs`, one after another → [..., out]``, the dtype of `x`.

    A layer's parts may be of several types: each is a run of its own.
    """
    products = [_product(x, run.of(weight), run.type) for run in runs]
    out = products[0] if len(products) == 1 else torch.cat(products, -1)
    return out if bias is None else out.add_(bias)


def _product(x: Tensor, weight: Tensor, ggml_type: GgmlType) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    width, count = x.shape[-1], len(weight)
    step = max(1, _CHUNK_ELEMENTS // width)
    decoded = torch.empty(min(step, count), width, device=weight.device)
    out = x.new_empty(len(rows), count)
    for at in range(0, count, step):
        blocks = weight[at : at + step]
        part = decode_rows(blocks, ggml_type, decoded[: len(blocks)])
        out[:, at : at + step] = linear(rows, part.to(x.dtype))
    return out.view(*x.shape[:-1], count)


@op
def embedding_gguf(ids: Tensor, weight: Tensor, ggml_type: GgmlType, dtype: torch.dtype) -> Tensor:
    """Rows `ids` (any shape) of a table in blocks, decoded: ``[..., elements per row]`` in `dtype`."""
    blocks = weight.index_select(0, ids.flatten())
    width = weight.shape[1] // ggml_type.type_size * ggml_type.block_size
    found = decode_rows(blocks, ggml_type, torch.empty(len(blocks), width, device=blocks.device))
    return found.to(dtype).view(*ids.shape, width)
