"""What one call of an op must move and compute at least, told from its arguments.

A product counts its weights, attention its cache, everything else what it reads and writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

from torch import Tensor

from bestiary.nn.attention.backend import AttentionSpec, KVCacheSpec
from bestiary.nn.attention.metadata import AttentionMetadata
from bestiary.nn.ops.packed import PackedWeight
from bestiary.nn.ops.product import Product


class OpCost(NamedTuple):
    """As in `KernelTime`."""

    shape: str
    bytes: float
    operations: float = 0


def op_cost(name: str, args: Sequence[Any], result: Any) -> OpCost:
    """Of a call of the op `name` with positional `args`."""
    if name.startswith("linear"):
        return _product(args, result)
    if name == "fused_experts":
        return _experts(*args[:5])
    if name == "grouped_experts":
        return _grouped_experts(*args[:5])
    if name.startswith("embedding"):
        return OpCost(_shape(result), 2 * result.nbytes)
    tensors = [each for each in args if isinstance(each, Tensor)]
    made = result if isinstance(result, tuple) else (result,)
    moved = sum(each.nbytes for each in [*tensors, *made] if isinstance(each, Tensor))
    return OpCost(_shape(tensors[0]) if tensors else "", moved)


def attention_cost(query: Tensor, kv_cache: Tensor, metadata: AttentionMetadata, spec: AttentionSpec) -> OpCost:
    """Keys and values of every token that is looked back on, read once a sequence; two products a pair of tokens."""
    looked, pairs = 0, 0
    for count, length in zip(metadata.query_lens_host, metadata.seq_lens_host, strict=True):
        window = min(spec.sliding_window or length, spec.attention_chunk_size or length)
        looked += min(length, window + count - 1)
        pairs += sum(min(end, window) for end in range(length - count + 1, length + 1))
    kept = KVCacheSpec(
        num_kv_heads=spec.num_kv_heads, head_size=spec.head_size, dtype=kv_cache.dtype, latent=spec.latent
    )
    shape = f"{spec.num_heads}/{spec.num_kv_heads} heads of {spec.head_size}"
    return OpCost(shape, looked * kept.bytes_per_token, 4 * spec.num_heads * spec.head_size * pairs)


def _product(args: Sequence[Any], result: Tensor) -> OpCost:
    x, weight = args[0], args[1]
    width, wide = x.shape[-1], result.shape[-1]
    held = sum(each.nbytes for each in args[1:] if isinstance(each, Tensor))
    rows = prod(x.shape[:-1])
    return OpCost(f"{rows}×{width}→{wide} {_form(weight)}", held, 2 * rows * width * wide)


def _experts(x: Tensor, w13: Tensor, w2: Tensor, weights: Tensor, slots: Tensor) -> OpCost:
    """Of experts those that were chosen."""
    experts, used = len(w13), len(set(slots.flatten().tolist()))
    elements = sum(prod(_matrices(each)[1:]) for each in (w13, w2))
    shape = f"{slots.numel()} pairs, {experts} experts {_form(w13)}"
    return OpCost(shape, (w13.nbytes + w2.nbytes) / experts * used, 2 * slots.numel() * elements)


def _grouped_experts(x: Tensor, first: Product, second: Product, weights: Tensor, slots: Tensor) -> OpCost:
    """As `_experts`, whatever their weights are kept in."""
    tensors = [*first.tensors.values(), *second.tensors.values()]
    experts, used = len(tensors[0]), len(set(slots.flatten().tolist()))
    shape = f"{slots.numel()} pairs, {experts} experts by {first.op.name}"
    operations = 2 * slots.numel() * sum(_elements(each) for each in (first, second))
    return OpCost(shape, sum(each.nbytes for each in tensors) / experts * used, operations)


def _elements(product: Product) -> int:
    """Weights of one of several stacked products."""
    runs = product.settings.get("runs")
    if runs is not None:
        return sum(run.rows * (run.row_bytes // run.type.type_size) * run.type.block_size for run in runs)
    in_a_byte = 2 if product.op.name in ("linear_int4", "linear_codebook") else 1
    return prod(product.tensors["weight"].shape[1:]) * in_a_byte


def _matrices(weight: Tensor) -> Sequence[int]:
    return weight.shape_before if isinstance(weight, PackedWeight) else weight.shape


def _form(weight: Tensor) -> str:
    return weight.form if isinstance(weight, PackedWeight) else str(weight.dtype).removeprefix("torch.")


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape))
