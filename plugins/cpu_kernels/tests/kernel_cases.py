"""Random matrices in every format, and an exact model of the quantized products in numpy."""

from __future__ import annotations

from functools import cache

import gguf
import numpy as np
from numpy.typing import NDArray

from bestiary.api.ggml_types import GgmlType
from bestiary_cpu import matrix
from bestiary_cpu._library import ISAS, library
from bestiary_cpu.pool import Pool

ABLE = ISAS[: library("scalar").native.bst_cpu_level() + 1]
QUANTIZED = tuple(each for each in matrix.FORMATS if each.block_size > 1)
_SCALES = {
    GgmlType.Q4_1: (0, 2), GgmlType.Q5_1: (0, 2), GgmlType.Q4_K: (0, 2), GgmlType.Q5_K: (0, 2), GgmlType.Q6_K: (208,),
}  # fmt: skip


@cache
def pool(threads: int = 2, isa: str | None = None) -> Pool:
    return Pool(threads, library(isa))


def normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def blocks(kind: GgmlType, n_out: int, n_in: int, seed: int = 0) -> NDArray[np.uint8]:
    """Rows as GGUF stores them: random codes and integer scales, normally distributed halves."""
    rng = np.random.default_rng(seed)
    numbers = normal(n_out, n_in, seed=seed)
    if kind is GgmlType.F32:
        return numbers.view(np.uint8)
    if kind is GgmlType.F16:
        return numbers.astype(np.float16).view(np.uint8)
    if kind is GgmlType.BF16:
        return (numbers.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    found = rng.integers(0, 256, (n_out, n_in // kind.block_size, kind.type_size), np.uint8)
    for at in _SCALES.get(kind, (0,)):
        halves = (rng.standard_normal(found.shape[:2]) * 0.02).astype(np.float16)
        found[..., at : at + 2] = halves[..., None].view(np.uint8)
    return found.reshape(n_out, -1)


def decoded(kind: GgmlType, rows: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The `gguf` package's reading of the same bytes."""
    if kind is GgmlType.F32:
        return rows.view(np.float32)
    return gguf.dequantize(rows, gguf.GGMLQuantizationType(int(kind))).reshape(len(rows), -1)


def quantized_rows(x: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Codes ``[rows, blocks, 32]`` and scales ``[rows, blocks]`` of activations."""
    groups = x.reshape(len(x), -1, 32)
    size = np.abs(groups).max(-1)
    some = size > np.float32(1e-30)
    factor = np.divide(np.float32(127), size, out=np.zeros_like(size), where=some)
    return np.rint(groups * factor[..., None]).astype(np.int64), np.where(some, size / np.float32(127), 0)


def fma(a: NDArray[np.float32], b: NDArray[np.float32], c: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rounded once: the product of two floats and the sum are exact enough in 64 bits of mantissa."""
    return (a.astype(np.longdouble) * b + c).astype(np.float32)
