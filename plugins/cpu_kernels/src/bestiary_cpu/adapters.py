"""What adapters add, all rows in two calls, whichever slots they have."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bestiary.api.ggml_types import GgmlType
from bestiary.nn.lora.rows import SlotRows
from bestiary.nn.ops.lora import add_lora as add_op
from bestiary.nn.ops.lora import add_lora_embedding as add_embedding_op

from ._abi import LoraArgs
from .memory import address
from .pool import Call
from .runtime import Rows, runtime

_FORMATS = {torch.float32: GgmlType.F32, torch.float16: GgmlType.F16, torch.bfloat16: GgmlType.BF16}


def add_lora(
    out: Tensor, x: Tensor, a: Tensor, b: Tensor, sizes: Sequence[int], rows: SlotRows, ranks: Mapping[int, int]
) -> Tensor:
    """As the op. Experts' factors, which lie apart, and outputs of more dimensions go torch's way."""
    if not _plain(out, a, b) or x.dim() != 2:
        return add_op.reference(out, x, a, b, sizes, rows, ranks)
    given = Rows(x)
    args = LoraArgs(shards=a.shape[1], n_in=a.shape[3], x=given.address, x_stride=given.stride)
    _run(args, out, a, b, tuple(sizes), rows, ranks, given.tensor)
    return out


def add_lora_embedding(
    out: Tensor, ids: Tensor, a: Tensor, b: Tensor, rows: SlotRows, ranks: Mapping[int, int]
) -> Tensor:
    if not _plain(out, a, b) or ids.dim() != 1:
        return add_embedding_op.reference(out, ids, a, b, rows, ranks)
    ids = ids.contiguous()
    args = LoraArgs(shards=1, n_in=a.shape[1], ids=ids.data_ptr())
    _run(args, out, a, b, (out.shape[1],), rows, ranks, ids)
    return out


def _plain(out: Tensor, a: Tensor, b: Tensor) -> bool:
    whole = a.is_contiguous() and b.is_contiguous() and a.dtype is b.dtype and a.dtype in _FORMATS
    return whole and out.dim() == 2 and out.stride(1) == 1 and out.dtype is torch.float32


def _run(
    args: LoraArgs, out: Tensor, a: Tensor, b: Tensor, sizes: tuple[int, ...], rows: SlotRows,
    ranks: Mapping[int, int], given: Tensor,
) -> None:  # fmt: skip
    here = runtime()
    used = np.array([ranks.get(slot, 0) for slot in range(len(a))], np.int32)
    slots = rows.slots.contiguous()
    inner = here.empty(len(out), args.shards * b.shape[2])
    args.format, args.a, args.b = _FORMATS[a.dtype], a.data_ptr(), b.data_ptr()
    args.slots, args.rank, args.rows = len(a), b.shape[2], len(out)
    args.ends, args.ranks, args.slot_of = address(_ends(sizes)), address(used), slots.data_ptr()
    args.inner, args.out, args.out_stride = inner.data_ptr(), out.data_ptr(), out.stride(0)
    if here.recorder is not None:
        here.recorder.keep(used)
    here.run(Call("bst_lora_shrink", args), Call("bst_lora_expand", args), keep=(out, a, b, slots, given))


@functools.cache
def _ends(sizes: tuple[int, ...]) -> NDArray[np.int64]:
    return np.cumsum(sizes, dtype=np.int64)
