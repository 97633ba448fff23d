"""Packed matrices and their products on numpy arrays: the library's functions as one uses them by hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bestiary.api.errors import UsageError
from bestiary.api.ggml_types import GgmlType

from ._abi import DecodeArgs, MatmulArgs, PackArgs, PrepareArgs, QuantizeArgs
from .memory import address, bytes_array
from .pool import Call, Pool

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

FORMATS = tuple(
    GgmlType[name]
    for name in ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL")
)
"""What can be packed."""
LOADABLE = (GgmlType.Q8_0, GgmlType.Q4_1)
"""What fp32 weights can be quantized to."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """Rows of activations as the products of one kind of format read them."""

    quantized: bool
    rows: int
    n_in: int
    data: Bytes


@dataclass(frozen=True, slots=True)
class Matrix:
    """An ``[n_out, n_in]`` matrix, packed for one library."""

    format: GgmlType
    n_out: int
    n_in: int
    data: Bytes


def pack(pool: Pool, format: GgmlType, rows: Bytes, n_in: int) -> Matrix:
    """Rows as GGUF stores them, uint8 ``[n_out, bytes per row]``, packed."""
    native = pool.library.native
    n_out, row_size = len(rows), native.bst_row_size(format, n_in)
    if format not in FORMATS or row_size == 0 or rows.shape != (n_out, row_size) or rows.strides[1:] != (1,):
        raise UsageError(
            f"{format.name} rows of {n_in} columns cannot be packed", value=rows.shape, limit=f"[rows, {row_size}]"
        )
    data = bytes_array(native.bst_packed_size(format, n_out, n_in), pool.library)
    args = PackArgs(format, address(rows), rows.strides[0], n_out, n_in, address(data))
    pool.run([Call("bst_pack", args)])
    return Matrix(format, n_out, n_in, data)


def quantize(pool: Pool, format: GgmlType, weight: Floats) -> Bytes:
    """fp32 ``[n_out, n_in]`` as GGUF rows of Q8_0 or Q4_1."""
    n_out, n_in = weight.shape
    size = pool.library.native.bst_row_size(format, n_in)
    if format not in LOADABLE or size == 0:
        raise UsageError(
            f"{n_in} columns cannot be quantized to {format.name}", limit="Q8_0 or Q4_1, a multiple of 32 columns"
        )
    blocks = np.empty((n_out, size), np.uint8)
    args = QuantizeArgs(format, address(weight), _stride(weight), n_out, n_in, address(blocks))
    pool.run([Call("bst_quantize_weights", args)])
    return blocks


def decode(pool: Pool, matrix: Matrix, ids: NDArray[np.int64] | None = None) -> Floats:
    """Rows `ids` (or all) as fp32."""
    count = matrix.n_out if ids is None else len(ids)
    if ids is not None and count and not 0 <= ids.min() <= ids.max() < matrix.n_out:
        raise UsageError("there is no such row", limit=f"0 … {matrix.n_out - 1}")
    out = np.empty((count, matrix.n_in), np.float32)
    args = DecodeArgs(
        matrix.format, address(matrix.data), matrix.n_out, matrix.n_in, address(ids), count, address(out), matrix.n_in
    )
    pool.run([Call("bst_decode", args)])
    return out


def prepare(pool: Pool, format: GgmlType, x: Floats, rows_of: NDArray[np.int32] | None = None) -> Prepared:
    """fp32 ``[rows, n_in]``, or the rows of it that are named, as products with `format` read them."""
    native = pool.library.native
    rows, n_in = len(x) if rows_of is None else len(rows_of), x.shape[1]
    quantized = native.bst_takes_quantized(format)
    data = bytes_array(native.bst_prepared_size(quantized, rows, n_in), pool.library)
    args = PrepareArgs(quantized, address(x), _stride(x), address(rows_of), rows, n_in, address(data))
    pool.run([Call("bst_prepare", args)])
    return Prepared(bool(quantized), rows, n_in, data)


def matmul_args(
    matrix: Matrix, x: Prepared, out: Floats, bias: Floats | None = None, add: Floats | None = None
) -> MatmulArgs:
    """The call ``out = x · matrixᵀ + bias + add``; it keeps what it points to alive."""
    if x.n_in != matrix.n_in or out.shape != (x.rows, matrix.n_out):
        raise UsageError("shapes do not fit", value=(x.rows, x.n_in, out.shape), limit=(matrix.n_out, matrix.n_in))
    args = MatmulArgs(
        matrix.format, address(matrix.data), address(x.data), x.rows, matrix.n_out, matrix.n_in, address(out),
        _stride(out), address(bias), address(add), 0 if add is None else _stride(add),
    )  # fmt: skip
    args.keep = (matrix, x, out, bias, add)
    return args


def matmul(pool: Pool, matrix: Matrix, x: Floats, bias: Floats | None = None, add: Floats | None = None) -> Floats:
    """``x · matrixᵀ + bias + add``: fp32 ``[rows, n_out]``."""
    out = np.empty((len(x), matrix.n_out), np.float32)
    prepared = prepare(pool, matrix.format, x)
    pool.run([Call("bst_matmul", matmul_args(matrix, prepared, out, bias, add))])
    return out


def _stride(array: NDArray[Any]) -> int:
    """Elements from row to row."""
    if array.ndim != 2 or (array.size and array.strides[1] != array.itemsize):
        raise UsageError("rows must be contiguous", value=array.strides)
    return array.strides[0] // array.itemsize
