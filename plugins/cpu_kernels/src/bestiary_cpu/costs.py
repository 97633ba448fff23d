"""What a kernel call must move and compute at least: for limits beside times.

A product counts its weights, attention its cache, everything else what it reads and writes. Lengths and experts are
looked up where the call reads them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch.utils._pytree import tree_leaves

from bestiary.api.ggml_types import GgmlType

from ._abi import KV_BF16, KV_F16, KV_F32, KV_INT8
from .pool import Call
from .recorder import TorchCall

_FP32 = 4
_ID = 8
_CACHED = {KV_F32: 4, KV_F16: 2, KV_BF16: 2, KV_INT8: 1}


class Cost(NamedTuple):
    """shape: for people. bytes: moved at least. operations: two a multiplication, of products and attention."""

    shape: str
    bytes: float
    operations: float = 0


def name_of(node: Call | TorchCall) -> str:
    """The kernel, and what it does beside."""
    if isinstance(node, TorchCall):
        return f"torch {getattr(node.function, '__name__', node.function)}"
    args: Any = node.args
    name = node.kernel.removeprefix("bst_")
    if name == "rope":
        return "rope and cache" if args.kv_cache and args.rotary_dim else "cache" if args.kv_cache else "rope"
    return f"{name} and prepare" if name in _PREPARING and args.prepared else name


def cost_of(node: Call | TorchCall, native: ctypes.CDLL) -> Cost:
    if isinstance(node, TorchCall):
        tensors = [
            each for each in tree_leaves((node.args, node.kwargs, node.result)) if isinstance(each, torch.Tensor)
        ]
        shape = "×".join(map(str, tensors[0].shape)) if tensors else ""
        return Cost(shape, sum(each.nbytes for each in tensors))
    return _COSTS[node.kernel](node.args, native)


def _matmul(args: Any, native: ctypes.CDLL) -> Cost:
    size = native.bst_packed_size(args.format, args.n_out, args.n_in)
    shape = f"{args.n_in}→{args.n_out} {_format(args).name}"
    return Cost(shape, size, 2 * args.rows * args.n_in * args.n_out)


def _expert_matmul(args: Any, native: ctypes.CDLL) -> Cost:
    """Experts that no row chose are not read."""
    ends = _numbers(ctypes.c_int32, args.offsets, args.experts + 1)
    used = sum(end > start for start, end in pairwise(ends))
    shape = f"{args.n_in}→{args.n_out} {_format(args).name}, {args.experts} experts"
    return Cost(shape, used * args.weight_bytes, 2 * ends[-1] * args.n_in * args.n_out)


def _attention(args: Any, native: ctypes.CDLL) -> Cost:
    lengths = _numbers(ctypes.c_int32, args.seq_lens, args.sequences)
    looked = sum(min(length, args.window or length) for length in lengths)
    size = looked * 2 * args.kv_heads * _cached(args)
    shape = f"{args.heads}/{args.kv_heads} heads of {args.head_size}"
    return Cost(shape, size, 4 * args.heads * args.head_size * looked * args.rows / args.sequences)


def _join(args: Any, native: ctypes.CDLL) -> Cost:
    return Cost(f"{args.heads} heads of {args.head_size}", 2 * _FP32 * args.rows * args.heads * args.head_size)


def _norm(args: Any, native: ctypes.CDLL) -> Cost:
    return Cost(f"{args.rows}×{args.n}", _FP32 * args.n * (args.rows * (4 if args.residual else 2) + 1))


def _activation(args: Any, native: ctypes.CDLL) -> Cost:
    return Cost(f"{args.rows}×{args.n}", _FP32 * args.rows * args.n * (3 if args.gated else 2))


def _prepare(args: Any, native: ctypes.CDLL) -> Cost:
    made = native.bst_prepared_size(args.quantized, args.rows, args.n_in)
    return Cost(f"{args.rows}×{args.n_in}", _FP32 * args.rows * args.n_in + made)


def _rope(args: Any, native: ctypes.CDLL) -> Cost:
    rows, width = args.rows, args.head_size
    turned = (args.heads if args.query else 0) + (args.kv_heads if args.key_out else 0)
    cached = 2 * args.kv_heads * (_FP32 * width + _cached(args)) if args.kv_cache else 0
    return Cost(f"{args.heads}/{args.kv_heads} heads of {width}", rows * (2 * _FP32 * turned * width + cached))


def _angles(args: Any, native: ctypes.CDLL) -> Cost:
    return Cost(f"{args.rows}×{args.rotary_dim}", 3 * _FP32 * args.rows * args.rotary_dim)


def _argmax(args: Any, native: ctypes.CDLL) -> Cost:
    return Cost(f"{args.rows}×{args.n}", _FP32 * args.rows * args.n)


def _decode(args: Any, native: ctypes.CDLL) -> Cost:
    size = native.bst_row_size(args.format, args.n_in) + _FP32 * args.n_in
    return Cost(f"{args.n_in} of {args.n_out} {_format(args).name}", args.count * size)


def _topk(args: Any, native: ctypes.CDLL) -> Cost:
    return Cost(f"{args.k} of {args.experts}", args.tokens * (_FP32 * args.experts + (_FP32 + _ID) * args.k))


def _route(args: Any, native: ctypes.CDLL) -> Cost:
    return Cost(f"{args.k} of {args.experts}", 2 * _ID * args.tokens * args.k)


def _combine(args: Any, native: ctypes.CDLL) -> Cost:
    return Cost(f"{args.k}×{args.n}", _FP32 * args.tokens * args.n * (args.k + 1))


def _lora(args: Any, native: ctypes.CDLL) -> Cost:
    """As if every row had an adapter of its own, up to the slots that there are."""
    factors = min(args.rows, args.slots) * args.shards * args.rank
    return Cost(f"rank {args.rank}, {args.n_in}", _format(args).type_size * factors * args.n_in)


def _format(args: Any) -> GgmlType:
    return GgmlType(args.format)  # type: ignore[call-arg]  # by its number


def _cached(args: Any) -> int:
    """Bytes of one head's key in the cache, its scale included."""
    scale = _FP32 if args.kv_type == KV_INT8 else 0
    return int(args.head_size) * _CACHED[args.kv_type] + scale


def _numbers(kind: Any, at: int, count: int) -> list[int]:
    return list((kind * count).from_address(at))


_PREPARING = {"norm", "activation", "attention", "attention_join"}
_COSTS: dict[str, Callable[[Any, ctypes.CDLL], Cost]] = {
    "bst_matmul": _matmul,
    "bst_expert_matmul": _expert_matmul,
    "bst_attention": _attention,
    "bst_attention_join": _join,
    "bst_norm": _norm,
    "bst_activation": _activation,
    "bst_prepare": _prepare,
    "bst_rope": _rope,
    "bst_angles": _angles,
    "bst_argmax": _argmax,
    "bst_decode": _decode,
    "bst_topk": _topk,
    "bst_route": _route,
    "bst_expert_combine": _combine,
    "bst_lora_shrink": _lora,
    "bst_lora_expand": _lora,
}
"""Of the kernels that come in steps."""
