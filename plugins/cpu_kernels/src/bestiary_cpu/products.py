"""Products with packed weights, and rows looked up in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bestiary.api.ggml_types import GgmlType
from bestiary.nn.ops.gguf import BlockRows, embedding_gguf, linear_gguf
from bestiary.nn.ops.linear import BY_SHAPE, FIXED_TILE
from bestiary.nn.ops.linear import embedding as embedding_op
from bestiary.nn.ops.packed import PackedWeight

from ._abi import DecodeArgs, MatmulArgs, PackArgs, PrepareArgs
from .packed_cache import WORTH_BYTES, packed_cache
from .pool import Call
from .runtime import Rows, Runtime, pointer, runtime

_FLOATS = {torch.float32: GgmlType.F32, torch.float16: GgmlType.F16, torch.bfloat16: GgmlType.BF16}


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of one format in a packed weight; `address` is where its panels begin."""

    format: GgmlType
    n_out: int
    address: int


@dataclass(frozen=True, slots=True)
class Layout:
    """A packed ``[n_out, n_in]``: parts one after another, each with its own format."""

    parts: tuple[Part, ...]
    n_in: int

    @property
    def n_out(self) -> int:
        return sum(part.n_out for part in self.parts)


def pack(sources: Sequence[tuple[GgmlType, Tensor]], n_in: int) -> PackedWeight | None:
    """Parts (format, rows as GGUF stores them), packed in parallel; of meta tensors the size alone.

    None where a row is no whole number of blocks, or nothing is there to be packed.
    """
    here = runtime()
    sizes = [here.native.bst_packed_size(format, len(rows), n_in) for format, rows in sources]
    if not all(sizes):
        return None
    shape = (sum(len(rows) for _, rows in sources), n_in)
    form = "+".join(dict.fromkeys(format.name for format, _ in sources))
    offsets = [sum(-(-size // 64) * 64 for size in sizes[:index]) for index in range(len(sizes) + 1)]
    if sources[0][1].is_meta:
        return PackedWeight.of(torch.empty(offsets[-1], dtype=torch.uint8, device="meta"), None, shape, form)
    data = _packed(here, sources, n_in, offsets)
    places = zip(sources, offsets, strict=False)
    parts = tuple(Part(format, len(rows), data.ctypes.data + offset) for (format, rows), offset in places)
    return PackedWeight.of(torch.from_numpy(data), Layout(parts, n_in), shape, form)


def _packed(
    here: Runtime, sources: Sequence[tuple[GgmlType, Tensor]], n_in: int, offsets: Sequence[int]
) -> NDArray[np.uint8]:
    """The panels of all sources, each from its offset; the last one is where they end."""

    def make() -> NDArray[np.uint8]:
        data = here.weights.take(offsets[-1], here.pool.library)
        for (format, rows), offset in zip(sources, offsets, strict=False):
            stride = rows.stride(0) * rows.element_size()
            args = PackArgs(format, pointer(rows), stride, len(rows), n_in, data.ctypes.data + offset)
            here.pool.run([Call("bst_pack", args)])
        return data

    quantized = all(here.native.bst_takes_quantized(format) for format, _ in sources)
    if offsets[-1] < WORTH_BYTES or not quantized:
        return make()
    shapes = ", ".join(f"{format.name} {len(rows)} x {n_in}" for format, rows in sources)
    blocks = [rows.contiguous().numpy() for _, rows in sources]
    cache = packed_cache(here.pool.threads)
    return cache.get(f"{here.pool.library.digest}: {shapes}", blocks, offsets[-1], make)


def pack_plain(weight: Tensor) -> PackedWeight | None:
    """A matrix of fp32, fp16 or bf16."""
    if isinstance(weight, PackedWeight) or weight.dtype not in _FLOATS or weight.dim() != 2:
        return None
    rows = weight.detach() if weight.stride(1) == 1 else weight.detach().contiguous()
    return pack([(_FLOATS[weight.dtype], rows)], weight.shape[1])


def pack_gguf(weight: Tensor, runs: Sequence[BlockRows]) -> PackedWeight | None:
    """Blocks as they are; K-quants' scales of sub-blocks are decoded. None for a type that has no kernels."""
    if isinstance(weight, PackedWeight):
        return None
    width = runs[0].row_bytes // runs[0].type.type_size * runs[0].type.block_size
    return pack([(run.type, run.of(weight.detach())) for run in runs], width)


def product(x: Tensor, layout: Layout, bias: Tensor | None = None) -> Tensor:
    """``[..., in] → [..., out]``."""
    here, rows = runtime(), Rows(x)
    out = here.empty(rows.count, layout.n_out)
    if rows.count:
        here.run(*_calls(here, rows, layout, out, bias), keep=(rows.tensor, bias))
    return out if x.dim() == 2 else out.view(*x.shape[:-1], layout.n_out)


def _calls(here: Runtime, rows: Rows, layout: Layout, out: Tensor, bias: Tensor | None) -> list[Call]:
    """One preparation for every kind of format in the layout, and a product for each part."""
    calls: list[Call] = []
    prepared: dict[int, int] = {}
    column = 0
    for part in layout.parts:
        quantized = here.native.bst_takes_quantized(part.format)
        if quantized not in prepared:
            size = here.native.bst_prepared_size(quantized, rows.count, layout.n_in)
            prepared[quantized] = here.prepared(size)
            args = PrepareArgs(quantized, rows.address, rows.stride, None, rows.count, layout.n_in, prepared[quantized])
            calls.append(Call("bst_prepare", args))
        at = None if bias is None else bias.data_ptr() + 4 * column
        arguments = MatmulArgs(
            part.format, part.address, prepared[quantized], rows.count, part.n_out, layout.n_in,
            out.data_ptr() + 4 * column, layout.n_out, at,
        )  # fmt: skip
        calls.append(Call("bst_matmul", arguments, wait=calls[-1].kernel == "bst_prepare"))
        column += part.n_out
    return calls


def lookup(ids: Tensor, layout: Layout) -> Tensor:
    """Rows `ids`, decoded: ``[..., in]``. Ids that are not there must not come; the engine refuses them."""
    here, (part,) = runtime(), layout.parts
    flat = ids.reshape(-1)
    out = here.empty(len(flat), layout.n_in)
    args = DecodeArgs(
        part.format, part.address, part.n_out, layout.n_in, flat.data_ptr(), len(flat), out.data_ptr(), layout.n_in
    )
    here.run(Call("bst_decode", args), keep=(flat,))
    return out.view(*ids.shape, layout.n_in)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`linear` with a packed weight; a plain one, which a model file multiplies itself, goes torch's way."""
    if isinstance(weight, PackedWeight):
        return product(x, weight.contents, bias)
    return BY_SHAPE.function(x, weight, bias)


def linear_fixed(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same for deterministic engines."""
    if isinstance(weight, PackedWeight):
        return product(x, weight.contents, bias)
    return FIXED_TILE.function(x, weight, bias)


def embedding(ids: Tensor, weight: Tensor) -> Tensor:
    if isinstance(weight, PackedWeight):
        return lookup(ids, weight.contents)
    return embedding_op.reference(ids, weight)


def gguf(x: Tensor, weight: Tensor, runs: Sequence[BlockRows], bias: Tensor | None = None) -> Tensor:
    """`linear_gguf`; types without kernels are decoded by the reference."""
    if isinstance(weight, PackedWeight):
        return product(x, weight.contents, bias)
    return linear_gguf.reference(x, weight, runs, bias)


def gguf_rows(ids: Tensor, weight: Tensor, ggml_type: GgmlType, dtype: torch.dtype) -> Tensor:
    if isinstance(weight, PackedWeight):
        return lookup(ids, weight.contents).to(dtype)
    return embedding_gguf.reference(ids, weight, ggml_type, dtype)
