"""Launching attention kernels: how work is cut into tiles and splits, and every variant of the kernels there is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from bestiary.nn.attention.backend import AttentionSpec
from bestiary.nn.attention.metadata import AttentionMetadata

from . import available
from .attention import attend_tile
from .sizes import power_of_2
from .splits import join_parts, join_splits
from .variants import Variant

SPLIT = 512
"""Keys of a split of exact launches: several tiles, and few enough splits for joining them to be little work."""
LEAST, MOST = 256, 8192
"""Keys of a part of other launches: at least, so that it is worth a program; and at most, if the longest sequence that
there may be is to be done in a time like the others'."""
_FULL = 2
"""Programs for each multiprocessor, that there is something to do while others wait."""
_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Tiles:
    """How a launch cuts its work: `rows` and `keys` of a tile."""

    rows: int
    keys: int
    num_warps: int
    num_stages: int


def tiles_for(spec: AttentionSpec, dtype: torch.dtype, *, decode: bool, exact: bool, capability: int = 80) -> Tiles:
    """Few rows wait for memory, many for the tensor cores, which want 64 rows or more; wide heads and fp32 leave less
    room in shared memory, and GPUs before capability 90 have fewer registers to spare. `exact` takes one shape for
    both."""
    least = max(16, power_of_2(spec.num_heads // spec.num_kv_heads))
    wide = power_of_2(spec.head_size) > 128
    if dtype is torch.float32:
        return Tiles(least, 16 if wide else 32, 4, 1)
    if exact:
        return Tiles(max(least, 64), 32 if wide else 64, 8, 3)
    if decode:
        return Tiles(least, 32 if wide else 64, 4, 3)
    if wide:
        return Tiles(max(least, 64), 32, 8, 3)
    return Tiles(max(least, 128), 128 if capability >= 90 else 64, 8, 3)


def attend(
    query: Tensor, kv_cache: Tensor, metadata: AttentionMetadata, spec: AttentionSpec, sinks: Tensor | None, exact: bool
) -> Tensor:
    """Causal attention of a step's queries ``[tokens, heads, head_size]`` over pages that are up to date.

    The leading ``metadata.num_decodes`` sequences have one query each, and their keys are split among programs; the
    others follow by tiles of several queries.
    """
    if query.stride(2) != 1 or query.stride(1) != spec.head_size:
        query = query.contiguous()
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    work = _Step(query, kv_cache, out, metadata, spec, sinks, exact)
    decodes, sequences = metadata.num_decodes, len(metadata.query_lens_host)
    if decodes:
        work.launch(0, decodes, decode=True)
    if sequences > decodes:
        work.launch(decodes, sequences, decode=False)
    return out


@dataclass(frozen=True, slots=True)
class _Step:
    query: Tensor
    kv_cache: Tensor
    out: Tensor
    metadata: AttentionMetadata
    spec: AttentionSpec
    sinks: Tensor | None
    exact: bool

    def launch(self, first: int, last: int, *, decode: bool) -> None:
        """Sequences first … last - 1."""
        metadata, spec = self.metadata, self.spec
        capability = available.capability_of(self.query.device)
        tiles = tiles_for(spec, self.query.dtype, decode=decode, exact=self.exact, capability=capability)
        tokens = tiles.rows // (spec.num_heads // spec.num_kv_heads)
        rows = len(self.query)
        count = last - first if decode else rows // tokens - first // tokens + last - first
        longest = metadata.block_tables.shape[1] * metadata.block_size
        splits = splits_for(count * spec.num_kv_heads, longest, self.query.device, self.exact) if decode else 1
        constants = _constants(spec, metadata.block_size, tiles, splits > 1, decode, self.exact, self.sinks is not None)
        slopes = None if spec.alibi_slopes is None else _slopes(spec.alibi_slopes, self.query.device)
        partial = marks = None
        if splits > 1:
            shape = (count, spec.num_heads, splits)
            partial = torch.empty(*shape, constants["PADDED"], dtype=torch.float32, device=self.query.device)
            marks = torch.empty(*shape, 2, dtype=torch.float32, device=self.query.device)
        starts, lengths = metadata.query_start[first:], metadata.seq_lens[first:]
        attend_tile[count, spec.num_kv_heads, splits](
            self.query, self.kv_cache, self.out, partial, marks, starts, lengths, metadata.block_tables[first:],
            slopes, self.sinks, last - first, splits, first // tokens, spec.scale, spec.logits_soft_cap or 1.0,
            self.query.stride(0), self.out.stride(0), metadata.block_tables.stride(0),
            self.kv_cache.stride(0), self.kv_cache.stride(1), self.kv_cache.stride(2),
            **constants, num_warps=tiles.num_warps, num_stages=tiles.num_stages, **_rounding(self.exact),
        )  # fmt: skip
        if partial is not None:
            kernel, warps = _joining(self.exact)
            kernel[count, spec.num_heads](
                partial, marks, self.out, lengths, self.sinks, splits, self.out.stride(0),
                **_joining_constants(constants, self.exact), num_warps=warps, **_rounding(self.exact),
            )  # fmt: skip


def splits_for(programs: int, longest: int, device: torch.device, exact: bool) -> int:
    """Into how many parts the keys of each row are divided, if there are so many `programs` otherwise.

    Lengths are known to the device alone, but for the `longest` that there may be. Exact launches that fill the device
    go over their splits one after another, with the same bits.
    """
    enough = _FULL * _multiprocessors(device)
    if exact:
        return -(-longest // SPLIT) if programs < enough else 1
    parts = max(-(-enough // programs), -(-longest // MOST))
    return min(parts, -(-longest // LEAST))


@cache
def _multiprocessors(device: torch.device) -> int:
    """Of what is no GPU, a few."""
    return int(torch.cuda.get_device_properties(device).multi_processor_count) if device.type == "cuda" else 4


@cache
def _slopes(slopes: tuple[float, ...], device: torch.device) -> Tensor:
    """On the device from the first step on: a graph that is being captured cannot wait for a copy."""
    return torch.tensor(slopes, dtype=torch.float32, device=device)


def _constants(
    spec: AttentionSpec, block_size: int, tiles: Tiles, apart: bool, decode: bool, exact: bool, sinks: bool
) -> dict[str, Any]:
    return {
        "HEADS": spec.num_heads,
        "GROUP": spec.num_heads // spec.num_kv_heads,
        "HEAD": spec.head_size,
        "PADDED": max(16, power_of_2(spec.head_size)),
        "BLOCK_SIZE": block_size,
        "BLOCK_M": tiles.rows,
        "BLOCK_N": tiles.keys,
        "SPLIT": SPLIT if exact else 0,
        "LEAST": LEAST,
        "APART": apart,
        "DECODE": decode,
        "WINDOW": spec.sliding_window or 0,
        "SOFT_CAP": spec.logits_soft_cap is not None,
        "ALIBI": spec.alibi_slopes is not None,
        "SINKS": sinks,
    }


def _rounding(exact: bool) -> dict[str, bool]:
    """Whether the compiler may round a product and a sum at once, which two kernels need not do alike."""
    return {"enable_fp_fusion": not exact}


def _joining(exact: bool) -> tuple[Any, int]:
    """The kernel that joins splits, and its warps."""
    return (join_splits, 1) if exact else (join_parts, 4)


def _joining_constants(constants: dict[str, Any], exact: bool) -> dict[str, Any]:
    names = ("HEADS", "HEAD", "PADDED", "WINDOW", "SINKS", *(("SPLIT",) if exact else ("BLOCK_N", "LEAST")))
    found = {name: constants[name] for name in names}
    return found if exact else found | {"AT_ONCE": _AT_ONCE}


_STRIDES = ("query_stride", "out_stride", "block_stride", "token_stride", "value_offset")
_NUMBERS = ("sequences", "splits", "earlier_tiles", "table_stride", *_STRIDES)


def variants() -> Iterator[Variant]:
    """Common shapes in every dtype; each further feature once."""
    plain = AttentionSpec(num_heads=32, num_kv_heads=8, head_size=128, scale=0.1)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        yield from _variants(plain, dtype, dtype)
    for kept in (torch.float8_e4m3fn, torch.float8_e5m2):
        yield from _variants(plain, torch.bfloat16, kept, only_decode=True)
    others = (
        AttentionSpec(num_heads=9, num_kv_heads=3, head_size=64, scale=0.1),
        AttentionSpec(num_heads=32, num_kv_heads=32, head_size=80, scale=0.1),
        AttentionSpec(num_heads=8, num_kv_heads=4, head_size=256, scale=0.1, sliding_window=4096, logits_soft_cap=50.0),
        AttentionSpec(num_heads=16, num_kv_heads=16, head_size=64, scale=0.1, alibi_slopes=(0.5,) * 16),
        AttentionSpec(num_heads=64, num_kv_heads=8, head_size=64, scale=0.1, sliding_window=128, has_sinks=True),
    )
    for spec in others:
        yield from _variants(spec, torch.bfloat16, torch.bfloat16)
    yield from _variants(others[2], torch.float32, torch.float32)
    yield from _variants(plain, torch.bfloat16, torch.bfloat16, exact=True)


def _variants(
    spec: AttentionSpec, dtype: torch.dtype, kept: torch.dtype, *, exact: bool = False, only_decode: bool = False
) -> Iterator[Variant]:
    kinds = [(True, True, 80), (True, False, 80), (False, False, 80), (False, False, 90)]
    seen = set()
    for decode, apart, capability in kinds[:1] if only_decode else kinds:
        tiles = tiles_for(spec, dtype, decode=decode, exact=exact, capability=capability)
        if (decode, apart, tiles) in seen:
            continue
        seen.add((decode, apart, tiles))
        constants = _constants(spec, 16, tiles, apart, decode, exact, spec.has_sinks)
        newer = tiles_for(spec, dtype, decode=decode, exact=exact, capability=90)
        given = {
            "query": _pointer(dtype), "cache": _pointer(kept), "out": _pointer(dtype), "partial": "*fp32",
            "marks": "*fp32", "starts": "*i32", "lengths": "*i32", "tables": "*i32", "slopes": "*fp32",
            "sinks": _pointer(dtype), "scale": "fp32", "soft_cap": "fp32", **dict.fromkeys(_NUMBERS, "i32"),
        }  # fmt: skip
        absent = {
            "partial": not apart,
            "marks": not apart,
            "slopes": spec.alibi_slopes is None,
            "sinks": not spec.has_sinks,
        }
        nothing = {name: None for name, missing in absent.items() if missing}
        since = max(capability, 89 if kept.itemsize == 1 else 80)
        before = 1000 if tiles == newer else 90
        launch = tiles.num_warps, tiles.num_stages, since, before, _rounding(exact)
        yield Variant(attend_tile, given, {**constants, **nothing}, *launch, divisible=_STRIDES)
        if apart:
            sinkless = {} if spec.has_sinks else {"sinks": None}
            kernel, warps = _joining(exact)
            joining = {**_joining_constants(constants, exact), **sinkless}
            yield Variant(kernel, given, joining, warps, options=_rounding(exact), divisible=("out_stride",))


_TYPES = {
    torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32",
    torch.float8_e4m3fn: "*fp8e4nv", torch.float8_e5m2: "*fp8e5",
}  # fmt: skip


def _pointer(dtype: torch.dtype) -> str:
    return _TYPES[dtype]
