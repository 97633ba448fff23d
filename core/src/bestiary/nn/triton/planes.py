"""Weights in GGUF blocks laid out in planes when they are loaded, and the ops that read them so.

A packed weight has the bytes that it had, each run in its own place: in planes where its type has such and kernels can
read it so, otherwise in blocks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bestiary.api.ggml_types import GgmlType
from bestiary.nn.gguf.dequant import decode_rows
from bestiary.nn.gguf.planes import PLANES, blocks_of, in_planes
from bestiary.nn.ops import gguf
from bestiary.nn.ops.gguf import BlockRows
from bestiary.nn.ops.packed import PackedWeight

_NONE: frozenset[BlockRows] = frozenset()
_ALIGNMENT = 16
"""Of a run in planes, in bytes: as much is copied at once."""
_WORD = 4
"""Bytes that are read at once where the last factor lies, which may be half of them."""


def planes_in(weight: Tensor) -> frozenset[BlockRows]:
    """The runs of a weight that are in planes."""
    found: frozenset[BlockRows] = weight.contents if isinstance(weight, PackedWeight) else _NONE
    return found


def plain(weight: Tensor) -> Tensor:
    """The bytes of a weight, packed or not."""
    return weight.data if isinstance(weight, PackedWeight) else weight


def pack_gguf(weight: Tensor, runs: Sequence[BlockRows]) -> PackedWeight | None:
    """None where no run would be in planes, where memory is shared with other weights, as that of experts is, and where
    whoever looks up rows could not read them."""
    chosen = frozenset(run for run in runs if run.type in PLANES and run.start % _ALIGNMENT == 0 and run.rows)
    if weight.is_meta or isinstance(weight, PackedWeight) or not chosen or not _alone(weight):
        return None
    if gguf.embedding_gguf.active is gguf.embedding_gguf.reference:
        return None
    bytes_of = weight.detach()
    room = torch.empty(-(-bytes_of.numel() // _WORD) * _WORD, dtype=torch.uint8, device=bytes_of.device)
    made = room[: bytes_of.numel()]
    for run in runs:
        blocks, end = run.of(bytes_of), run.start + run.rows * run.row_bytes
        made[run.start : end] = in_planes(blocks, run.type) if run in chosen else blocks.reshape(-1)
    form = "+".join(dict.fromkeys(run.type.name for run in runs))
    depth = runs[0].row_bytes // runs[0].type.type_size * runs[0].type.block_size
    return PackedWeight.of(made, chosen, (sum(run.rows for run in runs), depth), form)


def _alone(weight: Tensor) -> bool:
    return weight.is_contiguous() and weight.untyped_storage().nbytes() == weight.nbytes


def embedding_gguf(ids: Tensor, weight: Tensor, ggml_type: GgmlType, dtype: torch.dtype) -> Tensor:
    """As `bestiary.nn.ops.gguf.embedding_gguf`, of a packed table as well."""
    if not isinstance(weight, PackedWeight):
        return gguf.embedding_gguf.reference(ids, weight, ggml_type, dtype)
    rows, width = weight.shape_before
    blocks = blocks_of(weight.data, ggml_type, rows, ids.flatten())
    found = decode_rows(blocks, ggml_type, torch.empty(len(blocks), width, device=blocks.device))
    return found.to(dtype).view(*ids.shape, width)
