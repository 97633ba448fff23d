"""GGUF blocks to float32: every tensor type that llama.cpp writes today.

`decoders` and `codebooks` see one chunk of blocks at a time and write into the result, so the memory beyond the result
is a few chunks (at most 20 MiB), whatever the tensor's size. Results are bit for bit those of
the `gguf` package's reference `dequantize` (for Q1_0, Q2_0 and F64, which it lacks, those of the definition).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bestiary.api.errors import LoadError
from bestiary.api.ggml_types import GgmlType

from . import codebooks
from . import decoders as blocks

Decoder = Callable[[torch.Tensor, torch.Tensor], None]
"""Takes uint8 blocks (n, type_size) and float32 (n, block_size) to be written."""

FLOATS: Mapping[GgmlType, torch.dtype] = MappingProxyType(
    {
        GgmlType.F32: torch.float32,
        GgmlType.F16: torch.float16,
        GgmlType.BF16: torch.bfloat16,
        GgmlType.F64: torch.float64,
    }
)
"""The types that are plain numbers."""

_CHUNK_ELEMENTS = 1 << 20
_ALIGNMENT = 8
"""In bytes: what torch asks of memory that is looked at as wider numbers."""


def _floats(dtype: torch.dtype) -> Decoder:
    def decode(x: torch.Tensor, out: torch.Tensor) -> None:
        out.copy_(x.view(dtype))

    return decode


_DECODERS: Mapping[GgmlType, Decoder] = MappingProxyType(
    {
        **{type: _floats(dtype) for type, dtype in FLOATS.items()},
        GgmlType.Q1_0: blocks.q1_0,
        GgmlType.Q2_0: blocks.q2_0,
        GgmlType.Q4_0: blocks.q4_0,
        GgmlType.Q4_1: blocks.q4_1,
        GgmlType.Q5_0: blocks.q5_0,
        GgmlType.Q5_1: blocks.q5_1,
        GgmlType.Q8_0: blocks.q8_0,
        GgmlType.Q2_K: blocks.q2_k,
        GgmlType.Q3_K: blocks.q3_k,
        GgmlType.Q4_K: blocks.q4_k,
        GgmlType.Q5_K: blocks.q5_k,
        GgmlType.Q6_K: blocks.q6_k,
        GgmlType.TQ1_0: blocks.tq1_0,
        GgmlType.TQ2_0: blocks.tq2_0,
        GgmlType.MXFP4: blocks.mxfp4,
        GgmlType.NVFP4: blocks.nvfp4,
        GgmlType.IQ1_S: codebooks.iq1_s,
        GgmlType.IQ1_M: codebooks.iq1_m,
        GgmlType.IQ2_XXS: codebooks.iq2_xxs,
        GgmlType.IQ2_XS: codebooks.iq2_xs,
        GgmlType.IQ2_S: codebooks.iq2_s,
        GgmlType.IQ3_XXS: codebooks.iq3_xxs,
        GgmlType.IQ3_S: codebooks.iq3_s,
        GgmlType.IQ4_NL: codebooks.iq4_nl,
        GgmlType.IQ4_XS: codebooks.iq4_xs,
    }
)

SUPPORTED = frozenset(_DECODERS)
"""Every type but the plain integers, which are not weights."""


def dequantize(data: NDArray[np.uint8], type: GgmlType, shape: Sequence[int]) -> torch.Tensor:
    """The float32 tensor of `shape` (torch order) that `data`, contiguous blocks, stands for.

    Raises:
        LoadError: a type that cannot be decoded, or a number of bytes that is not `shape`'s.
    """
    decode = _DECODERS.get(type)
    if decode is None:
        raise LoadError(
            f"{type.name} tensors cannot be turned into weights",
            code="UNSUPPORTED_GGML_TYPE",
            value=type.name,
            limit="one of " + ", ".join(sorted(t.name for t in SUPPORTED)),
        )
    block_count, byte_count = _sizes(type, shape)
    if data.nbytes != byte_count:
        raise LoadError(f"{type.name} {tuple(shape)} takes {byte_count} bytes, {data.nbytes} were given")
    source = data.reshape(block_count, type.type_size)
    result = torch.empty(tuple(shape), dtype=torch.float32)
    target = result.view(block_count, type.block_size)
    step = _CHUNK_ELEMENTS // type.block_size
    for start in range(0, block_count, step):
        chunk: NDArray[Any] = np.array(
            source[start : start + step]
        )  # a copy: torch refuses read-only memory, such as a map
        decode(torch.from_numpy(chunk), target[start : start + step])
    return result


def decode_rows(rows: torch.Tensor, type: GgmlType, out: torch.Tensor) -> torch.Tensor:
    """Decode blocks in memory into `out`, and return it: for callers that bound their memory themselves.

    Args:
        rows: uint8 ``[n, bytes per row]``, contiguous. out: float32 ``[n, elements per row]``, contiguous.
    """
    if rows.storage_offset() % _ALIGNMENT:
        rows = rows.clone()
    _DECODERS[type](rows.view(-1, type.type_size), out.view(-1, type.block_size))
    return out


def _sizes(type: GgmlType, shape: Sequence[int]) -> tuple[int, int]:
    elements = math.prod(shape)
    if not shape or shape[-1] % type.block_size:
        raise LoadError(f"{type.name} needs rows of a multiple of {type.block_size} elements, not shape {tuple(shape)}")
    block_count = elements // type.block_size
    return block_count, block_count * type.type_size
