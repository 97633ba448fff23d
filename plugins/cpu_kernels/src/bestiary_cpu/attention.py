"""`native`: attention by this package's kernels, over pages in fp32, fp16, bfloat16 or int8."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from bestiary.api.errors import EngineError
from bestiary.nn.attention.backend import AttentionSpec, AttentionType, KVCacheSpec
from bestiary.nn.attention.mask import is_cached
from bestiary.nn.attention.metadata import AttentionMetadata
from bestiary.nn.attention.pages import cache_shape

from . import _library
from ._abi import KV_BF16, KV_F16, KV_F32, KV_INT8, AttentionArgs, RopeArgs
from .pool import Call
from .runtime import Runtime, pointer, runtime

_TYPES = {torch.float32: KV_F32, torch.float16: KV_F16, torch.bfloat16: KV_BF16, torch.int8: KV_INT8}
_MOST_CHANNELS = 512
_FEW = 4
"""Pieces of work for a thread below which a decode step takes keys apart, too."""


class NativeBackend:
    """Keys in splits of fixed size: a row's bits depend neither on its batch nor on how its prompt was cut."""

    name = "native"
    dtypes = (torch.float32,)
    deterministic = True
    recordable = True

    def why_not(self, device: str, spec: AttentionSpec) -> str | None:
        if device != "cpu":
            return "for CPUs"
        if reason := _library.why_not():
            return reason
        if spec.attn_type is not AttentionType.DECODER:
            return "for decoders"
        if spec.head_size % 16 or spec.head_size > _MOST_CHANNELS:
            return f"heads have {spec.head_size} channels: a multiple of 16 up to {_MOST_CHANNELS} is wanted"
        if spec.cache_dtype is not None and spec.cache_dtype not in _TYPES:
            return f"no kernels for a cache of {str(spec.cache_dtype).removeprefix('torch.')}"
        return None

    def cache_shape(self, spec: KVCacheSpec, num_blocks: int, block_size: int) -> tuple[int, ...]:
        """Pages; of int8 a row for each block, whose scales lie behind its keys and values."""
        if spec.dtype is torch.int8:
            return (num_blocks, block_size * spec.bytes_per_token)
        return cache_shape(spec, num_blocks, block_size)

    def forward(
        self,
        query: Tensor,
        key: Tensor | None,
        value: Tensor | None,
        kv_cache: Tensor,
        metadata: AttentionMetadata,
        spec: AttentionSpec,
        sinks: Tensor | None,
    ) -> Tensor:
        """As `AttentionBackend.forward`."""
        here = runtime()
        calls, kept = [], [kv_cache, sinks]
        if key is not None and value is not None and is_cached(spec):
            key, value = _heads(key), _heads(value)
            calls.append(_write(key, value, kv_cache, metadata, spec))
            kept += [key, value, metadata.slot_mapping]
        query = _heads(query)
        out = here.empty(len(query), spec.num_heads * spec.head_size)
        more, scratch = _attend(here, query, kv_cache, metadata, spec, sinks, out)
        kept += [query, metadata.query_start, metadata.seq_lens, metadata.block_tables, *scratch]
        here.run(*calls, *more, keep=tuple(kept))
        return out.view(query.shape)


@functools.cache
def _slopes(slopes: tuple[float, ...]) -> Tensor:
    return torch.from_numpy(np.array(slopes, np.float32))


def _heads(x: Tensor) -> Tensor:
    """``[tokens, heads, head_size]`` fp32 whose heads follow one another within a token."""
    if x.dtype is not torch.float32:
        raise EngineError("native attention takes float32", field="dtype", value=str(x.dtype))
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()


def _write(key: Tensor, value: Tensor, cache: Tensor, metadata: AttentionMetadata, spec: AttentionSpec) -> Call:
    args = RopeArgs(
        key=key.data_ptr(), key_stride=key.stride(0), value=value.data_ptr(), value_stride=value.stride(0),
        slots=metadata.slot_mapping.data_ptr(), rows=len(key), heads=spec.num_heads, kv_heads=spec.num_kv_heads,
        head_size=spec.head_size, kv_type=_TYPES[cache.dtype], block_size=metadata.block_size,
        kv_cache=cache.data_ptr(),
    )  # fmt: skip
    return Call("bst_rope", args)


def _attend(
    here: Runtime, query: Tensor, cache: Tensor, metadata: AttentionMetadata, spec: AttentionSpec,
    sinks: Tensor | None, out: Tensor,
) -> tuple[list[Call], list[Tensor]]:  # fmt: skip
    """The calls, and the memory that they need beside their arguments. In decode steps of few pieces of work, threads
    share a sequence's keys; how many there are is looked up when the step runs."""
    slopes = None if spec.alibi_slopes is None else _slopes(spec.alibi_slopes)
    args = AttentionArgs(
        query=query.data_ptr(), query_stride=query.stride(0), kv_cache=cache.data_ptr(),
        query_start=metadata.query_start.data_ptr(), seq_lens=metadata.seq_lens.data_ptr(),
        block_tables=metadata.block_tables.data_ptr(), table_stride=metadata.block_tables.stride(0),
        rows=len(query), sequences=len(metadata.seq_lens), kv_type=_TYPES[cache.dtype],
        block_size=metadata.block_size, heads=spec.num_heads, kv_heads=spec.num_kv_heads, head_size=spec.head_size,
        window=spec.sliding_window or 0, scale=spec.scale, soft_cap=spec.logits_soft_cap or 0.0,
        alibi=pointer(slopes), sinks=pointer(sinks), out=out.data_ptr(), out_stride=out.shape[1],
    )  # fmt: skip
    scratch = [] if slopes is None else [slopes]
    if metadata.max_query_len > 1 or len(query) * spec.num_kv_heads >= _FEW * here.pool.threads:
        return [Call("bst_attention", args)], scratch
    longest = metadata.block_tables.shape[1] * metadata.block_size
    args.most_splits = -(-longest // here.native.bst_attention_split())
    if args.most_splits < 2 or here.pool.threads == 1:
        return [Call("bst_attention", args)], scratch
    partial = here.empty(len(query), spec.num_heads, args.most_splits, spec.head_size + 2)
    args.partial = partial.data_ptr()
    return [Call("bst_attention", args), Call("bst_attention_join", args)], [*scratch, partial]
