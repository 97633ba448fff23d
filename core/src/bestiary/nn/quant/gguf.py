"""GGUF weights kept in their file's blocks, under linear layers, experts, embeddings and heads.

The file's header says which tensor is of which type, so that each layer's layout is known before a byte is read. What
a layer keeps is what the file has: memory is the file's size. A product decodes the blocks as it goes (`nn/ops/gguf`).

Ranks split outputs by rows, whatever the type; inputs are split by bytes, so that a rank's share must be whole blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from bestiary.api.errors import ConfigError, UsageError, WeightsMismatch
from bestiary.api.ggml_types import GgmlType
from bestiary.nn.embedding import VocabParallelEmbedding
from bestiary.nn.gguf.dequant import FLOATS
from bestiary.nn.gguf.tensor import BlockTensor
from bestiary.nn.linear_base import LinearBase, refuse_other_rows
from bestiary.nn.moe.names import FUSED, merged_name
from bestiary.nn.ops.gguf import BlockRows, embedding_gguf, linear_gguf
from bestiary.nn.ops.packed import PackedWeight
from bestiary.nn.ops.product import Product
from bestiary.nn.parallel import refuse
from bestiary.nn.weights.fill import ShardId, fill, set_weight_attrs

from .base import QuantizationConfig, QuantizeMethodBase, keep_packed, packed_bytes


class GgufConfig(QuantizationConfig):
    """Keeps every layer in blocks that the file has in blocks.

    Args:
        tensors: the checkpoint's name of each matrix → its type.

    Attributes:
        kept: names of the tensors that layers have asked for in blocks; the loader decodes all others.
    """

    name = "gguf"

    def __init__(self, tensors: Mapping[str, GgmlType]) -> None:
        self.tensors = tensors
        self.kept: set[str] = set()
        self._by_model_name: dict[str, str] | None = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> GgufConfig:
        """``{"tensors": {name: name of a type}}``, as read from a file's header."""
        tensors = config.get("tensors")
        if not tensors:
            raise ConfigError(
                "quantization gguf keeps the blocks of a GGUF file, and this model is none",
                field="quantization", value="gguf", limit="a .gguf file",
                fix="leave it out, or quantize while loading, with another method",
            )  # fmt: skip
        return cls({name: GgmlType[kind] for name, kind in tensors.items()})

    @property
    def decoded(self) -> list[str]:
        """Tensors that the file has in blocks and no layer has asked for."""
        return [name for name, kind in self.tensors.items() if kind not in FLOATS and name not in self.kept]

    def get_quant_method(self, layer: nn.Module, prefix: str) -> QuantizeMethodBase | None:
        if not isinstance(layer, LinearBase | VocabParallelEmbedding):
            return None
        names = self._stored(layer, prefix)
        types = [self.tensors[name] for name in names]
        if all(kind in FLOATS for kind in types):
            return None
        self.kept.update(names)
        return GgufLinearMethod(prefix, types)

    def _stored(self, layer: nn.Module, prefix: str) -> list[str]:
        """The checkpoint's tensors that make up the layer: its own, or one for each part of it; none if unknown."""
        head, dot, leaf = prefix.rpartition(".")
        fused: Sequence[str] = getattr(layer, "fused_names", ())
        whole = self._find(f"{head}{dot}{FUSED}" if fused else prefix)
        if whole is not None:
            return [whole]
        parts = fused or [f"{head}{dot}{each}" for each in self.packed_modules_mapping.get(leaf, ())]
        found = [name for each in parts if (name := self._find(each)) is not None]
        complete = len(found) == len(parts) == len(getattr(layer, "output_sizes", ()))
        return found if complete else []

    def _find(self, name: str) -> str | None:
        """The checkpoint's name of a layer's weight; for one of several experts perhaps that of all of them."""
        if self._by_model_name is None:
            self._by_model_name = {new: old for old in self.tensors if (new := self._renamed(old)) is not None}
        known = self._by_model_name
        return known.get(f"{name}.weight") or known.get(f"{merged_name(name)}.weight")

    def _renamed(self, name: str) -> str | None:
        found: str | None = name
        for mapper in self.mappers:
            found = None if found is None else mapper.map_name(found)
        return found


class GgufLinearMethod(QuantizeMethodBase):
    """`weight`: uint8 ``[rows, bytes per row]``; flat where the parts of a fused layer are of several types.

    Args:
        name: the layer's, for errors. types: one for each logical output of the layer, or one for all of them.
    """

    def __init__(self, name: str, types: Sequence[GgmlType]) -> None:
        self.name = name
        self.types = list(types)
        self.parts: list[BlockRows] = []
        self.runs: list[BlockRows] = []

    def create_weights(
        self,
        layer: nn.Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        if len(self.types) == 1:
            self.types *= len(output_partition_sizes)
        row_bytes = [self._row_bytes(kind, input_size_per_partition, input_size) for kind in self.types]
        self.parts = list(_laid_out(zip(self.types, output_partition_sizes, row_bytes, strict=True)))
        self.runs = _joined(self.parts)
        rows = sum(output_partition_sizes)
        attrs: dict[str, Any] = {"num_weights": rows * input_size_per_partition}
        if len(self.runs) == 1:
            shape: tuple[int, ...] = (rows, row_bytes[0])
            attrs |= {"output_dim": 0, "input_dim": 1}
        else:
            shape = (sum(part.rows * part.row_bytes for part in self.parts),)
        weight = nn.Parameter(torch.empty(shape, dtype=torch.uint8, device="meta"), requires_grad=False)
        set_weight_attrs(weight, {**attrs, "weight_loader": self._loader(layer)})
        layer.register_parameter("weight", weight)

    def _row_bytes(self, kind: GgmlType, inputs: int, of: int) -> int:
        if inputs != of and inputs % kind.block_size:
            refuse(
                UsageError(
                    f"{self.name}: {of} inputs in {kind.name} blocks of {kind.block_size} cannot be divided among "
                    f"{of // inputs} ranks",
                    field="tensor_parallel_size", value=of // inputs,
                    limit=f"whole blocks: a rank's share of the inputs is a multiple of {kind.block_size}",
                    fix="fewer ranks, or no quantization=gguf: a dequantized model can be divided anywhere",
                )
            )  # fmt: skip
        return inputs // kind.block_size * kind.type_size

    def apply(self, layer: nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return self.product(layer)(x, bias)

    def product(self, layer: nn.Module) -> Product:
        weight: Any = layer.weight
        return Product(linear_gguf, {"weight": weight}, {"runs": self.runs})

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        keep_packed(layer, self.packed(layer))

    def packed(self, layer: nn.Module) -> PackedWeight | None:
        return linear_gguf.pack(layer.weight, self.runs)

    def bytes_added(self, layer: nn.Module) -> int:
        return packed_bytes(layer, self.packed(layer))

    def embedding(self, layer: nn.Module, ids: torch.Tensor) -> torch.Tensor:
        table: Any = layer
        return embedding_gguf(ids, table.weight, self.types[0], table.params_dtype)

    def _loader(self, layer: Any) -> Any:
        """Takes blocks of the expected types only, and lets the layer find this rank's part of them."""

        def load(param: nn.Parameter, loaded: torch.Tensor, shard_id: ShardId = None) -> None:
            blocks = self._checked(layer, loaded, shard_id)
            if len(self.runs) == 1:
                layer.weight_loader(param, blocks, shard_id)
            else:
                self._load_parts(layer, param, blocks, shard_id)

        return load

    def _checked(self, layer: Any, loaded: torch.Tensor, shard_id: ShardId) -> torch.Tensor:
        expected = {self.types[index] for index in _indices(layer, shard_id, len(self.types))}
        if isinstance(loaded, BlockTensor) and expected == {loaded.ggml_type}:
            return loaded.plain
        found = loaded.ggml_type.name if isinstance(loaded, BlockTensor) else str(loaded.dtype).removeprefix("torch.")
        wanted = " and ".join(sorted(kind.name for kind in expected))
        raise WeightsMismatch(
            f"expected {wanted} blocks, the loader brings {found} {list(loaded.shape)}",
            limit=f"{wanted} blocks, as the file's header says", value=found,
            fix="a load_weights that computes with weights cannot keep them in blocks: leave out quantization=gguf",
        )  # fmt: skip

    def _load_parts(self, layer: LinearBase, param: nn.Parameter, blocks: torch.Tensor, shard_id: ShardId) -> None:
        """Parts of several types: each has its own place in the flat parameter. Only outputs are split here."""
        indices = _indices(layer, shard_id, len(self.types))
        sizes = [layer.output_sizes[index] for index in indices]
        refuse_other_rows(blocks, sum(sizes), 0)
        for index, part in zip(indices, torch.split(blocks, sizes), strict=True):
            run = self.parts[index]
            if len(part) != run.rows:
                part = part.narrow(0, layer.rank_of_shard(index) * run.rows, run.rows)
            fill(param, run.of(param.data), part)


def _indices(layer: Any, shard_id: ShardId, count: int) -> list[int]:
    """Positions of the logical outputs that a tensor with this shard id brings."""
    if shard_id is None:
        return list(range(count))
    shards = shard_id if isinstance(shard_id, tuple) else (shard_id,)
    return [layer.shard_index(each) for each in shards]


def _laid_out(parts: Iterable[tuple[GgmlType, int, int]]) -> Iterable[BlockRows]:
    start = 0
    for kind, rows, row_bytes in parts:
        yield BlockRows(kind, start, rows, row_bytes)
        start += rows * row_bytes


def _joined(parts: Sequence[BlockRows]) -> list[BlockRows]:
    """Neighbours of one type as one run, so that they are one product."""
    runs: list[BlockRows] = []
    for part in parts:
        if runs and runs[-1].type is part.type:
            runs[-1] = runs[-1]._replace(rows=runs[-1].rows + part.rows)
        else:
            runs.append(part)
    return runs
