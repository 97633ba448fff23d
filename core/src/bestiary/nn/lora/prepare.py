"""From the factors in an adapter's file to this rank's part of them, in the layout of a layer's slots.

Each layer's own `weight_loader` does the cutting, so that whatever it does to a weight (heads that several ranks hold,
interleaved rows, a padded vocabulary) it does to the factors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from bestiary.api.errors import WeightsMismatch
from bestiary.nn.embedding import ParallelLMHead, VocabParallelEmbedding
from bestiary.nn.linear_base import LinearBase
from bestiary.nn.moe.layer import FusedMoE
from bestiary.nn.weights.fill import ShardId, set_weight_attrs

from .slots import Factors


class Piece(NamedTuple):
    """One pair of factors: the change of a weight ``[out, in]`` is ``scale * b @ a``.

    a: ``[rank, in]``. b: ``[out, rank]``. For all experts at once ``[experts * rank, in]``, an expert's rows together,
    and ``[out, rank * experts]``, an expert's columns `experts` apart. An embedding's weight counts as ``[hidden,
    vocabulary]``.
    """

    module: str
    a: torch.Tensor
    b: torch.Tensor
    scale: float
    of_embedding: bool = False


def linear_factors(layer: LinearBase | ParallelLMHead, parts: Sequence[tuple[ShardId, Piece]]) -> Factors:
    """Of a linear layer or a head, from one piece for each of its shards that has one, or for several at once."""
    sizes = shard_sizes(layer)
    rank = max(len(piece.a) for _, piece in parts)
    a = torch.zeros(len(sizes), rank, width(layer), dtype=layer.params_dtype)
    b = torch.zeros(sum(sizes), rank, dtype=layer.params_dtype)
    for shard, piece in parts:
        own = len(piece.a)
        first = _cut(layer, (own, width(layer)), {"input_dim": 1}, piece.a, None)
        second = _cut(layer, (sum(sizes), own), {"output_dim": 0}, piece.b.float() * piece.scale, shard)
        for index in shards_of(layer, shard):
            a[index, :own] = first
        b[:, :own] += second  # zero outside the shard
    return Factors(a, b)


def embedding_factors(layer: VocabParallelEmbedding, piece: Piece) -> Factors:
    rank, rows, hidden = len(piece.a), layer.num_embeddings_per_partition, layer.embedding_dim
    table = _cut(layer, (rows, rank), {"output_dim": 0}, piece.a.t(), None)
    second = _cut(layer, (hidden, rank), {}, piece.b.float() * piece.scale, None)
    return Factors(table, second)


def expert_factors(layer: LinearBase, parts: Sequence[tuple[int | None, ShardId, Piece]], experts: int) -> Factors:
    """Of the gate-and-up layers of the model's `experts`, or of their down layers: all, wherever they lie.

    Args:
        layer: one of them, which stands for all. parts: (expert or None for all, shard, piece).
    """
    by_expert: dict[int, list[tuple[ShardId, Piece]]] = {}
    for expert, shard, piece in parts:
        pieces = _unstacked(piece, experts) if expert is None else {expert: piece}
        for number, each in pieces.items():
            by_expert.setdefault(number, []).append((shard, each))
    made = {number: linear_factors(layer, found) for number, found in by_expert.items()}
    rank = max((each.b.shape[-1] for each in made.values()), default=1)
    sizes = shard_sizes(layer)
    a = torch.zeros(experts, len(sizes), rank, width(layer), dtype=layer.params_dtype)
    b = torch.zeros(experts, sum(sizes), rank, dtype=layer.params_dtype)
    for number, factors in made.items():
        own = factors.b.shape[-1]
        a[number, :, :own] = factors.a
        b[number, :, :own] = factors.b
    return Factors(a, b)


def stack_of(layer: FusedMoE, piece: Piece) -> str:
    """Which of the two stacks a piece for all experts is meant for: no two have the same widths."""
    matrices = piece.a.dim() == piece.b.dim() == 2
    for name, stack in zip(("w13", "w2"), layer.stacks, strict=True):
        one = stack.layers[0]
        if matrices and (piece.a.shape[1], len(piece.b)) == (one.input_size, one.output_size):
            return name
    raise WeightsMismatch(
        f"lora_A {list(piece.a.shape)} and lora_B {list(piece.b.shape)} fit neither projection of the experts"
    )


def shard_sizes(layer: LinearBase | VocabParallelEmbedding) -> list[int]:
    """This rank's outputs of each part."""
    return layer.output_partition_sizes if isinstance(layer, LinearBase) else [layer.num_embeddings_per_partition]


def width(layer: LinearBase | VocabParallelEmbedding) -> int:
    """This rank's inputs."""
    return layer.input_size_per_partition if isinstance(layer, LinearBase) else layer.embedding_dim


def shards_of(layer: LinearBase | VocabParallelEmbedding, shard: ShardId) -> list[int]:
    """The parts that a shard id names."""
    if shard is None or not isinstance(layer, LinearBase):
        return list(range(len(shard_sizes(layer))))
    return [layer.shard_index(each) for each in (shard if isinstance(shard, tuple) else (shard,))]


def _unstacked(piece: Piece, experts: int) -> dict[int, Piece]:
    """A piece for all experts, as one for each."""
    rank = len(piece.a) // experts
    a = piece.a.reshape(experts, rank, -1)
    b = piece.b.reshape(len(piece.b), rank, experts).permute(2, 0, 1)
    return {number: piece._replace(a=a[number], b=b[number]) for number in range(experts)}


def check_shapes(
    layer: LinearBase | VocabParallelEmbedding, shard: ShardId, piece: Piece, max_rank: int, experts: int = 1
) -> None:
    """A `WeightsMismatch` unless the piece fits the layer. For a piece of all experts, `experts` is their number."""
    inputs = layer.input_size if isinstance(layer, LinearBase) else layer.embedding_dim
    outputs, names = _outputs(layer, shard), ("lora_A", "lora_B")
    if piece.of_embedding:
        inputs, outputs, names = outputs, inputs, ("lora_embedding_A", "lora_embedding_B")
    rank, rest = divmod(len(piece.a) if piece.a.dim() else 0, experts)
    if rest:
        raise WeightsMismatch(f"lora_A {list(piece.a.shape)} cannot be divided among {experts} experts")
    if not 0 < rank <= max_rank:
        raise WeightsMismatch(f"its rank is {rank}; the slots take 1 to max_lora_rank={max_rank}")
    wanted = ((rank * experts, inputs), (outputs, rank * experts))
    wrong = [
        f"{name} is {list(tensor.shape)}, the model takes {list(shape)}"
        for name, tensor, shape in zip(names, (piece.a, piece.b), wanted, strict=True)
        if tuple(tensor.shape) != shape
    ]
    if wrong:
        raise WeightsMismatch("; ".join(wrong))


def _outputs(layer: LinearBase | VocabParallelEmbedding, shard: ShardId) -> int:
    if not isinstance(layer, LinearBase):
        return layer.org_vocab_size
    return sum(layer.output_sizes[index] for index in shards_of(layer, shard))


def _cut(layer: Any, shape: tuple[int, ...], attributes: dict[str, object], whole: torch.Tensor, shard: ShardId) -> Any:
    """This rank's part of a factor, cut by the layer itself; zero where the shard has nothing."""
    part = nn.Parameter(torch.zeros(shape, dtype=layer.params_dtype), requires_grad=False)
    set_weight_attrs(part, attributes)
    layer.weight_loader(part, whole, shard)
    return part.data
