"""A GGUF file as a checkpoint: (name, tensor) pairs under the checkpoint's names, one tensor alive at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from bestiary.api.errors import WeightsMismatch
from bestiary.api.gguf import GgufArchitecture
from bestiary.engine.loader.gguf_config import gguf_config
from bestiary.engine.loader.gguf_names import checkpoint_names
from bestiary.engine.loader.gguf_reader import GgufFile, GgufTensor
from bestiary.nn.gguf.dequant import dequantize
from bestiary.nn.gguf.tensor import BlockTensor


def gguf_tensors(
    file: GgufFile, declaration: GgufArchitecture, keep: Collection[str] = frozenset()
) -> Iterator[tuple[str, torch.Tensor]]:
    """Every weight in float32, decoded when it is asked for. Peak memory beyond the file's map: two tensors.

    Args:
        keep: the weights that come as `BlockTensor`, copied from the map.

    Raises:
        WeightsMismatch: tensors nobody knows; before the first pair.
        LoadError: a type that cannot be decoded.
    """
    for name, tensor in gguf_block_tensors(file, declaration):
        if name in keep:
            yield name, BlockTensor.of(torch.from_numpy(np.array(tensor.data)), tensor.type)
        else:
            yield name, dequantize(tensor.data, tensor.type, tensor.shape)
        tensor.release()


def gguf_block_tensors(file: GgufFile, declaration: GgufArchitecture) -> Iterator[tuple[str, GgufTensor]]:
    """Every weight as its file's blocks, rows already in the checkpoint's order; for quantized execution."""
    names = checkpoint_names(file, declaration)
    config = gguf_config(file, declaration)
    for gguf_name, name in names.items():
        tensor, module = replace(file.tensors[gguf_name], name=name), _module(name)
        if module in declaration.rope_interleaved:
            tensor = half_split(tensor, _heads(config, declaration.rope_interleaved[module]))
        if module in declaration.qkv_interleaved:
            tensor = by_head(tensor, _heads(config, "num_attention_heads"), _heads(config, "num_key_value_heads"))
        yield name, tensor


def half_split(tensor: GgufTensor, heads: int) -> GgufTensor:
    """The tensor with each head's rows put from interleaved rotary pairs (0, d/2, 1, d/2 + 1, …) into order.

    Whole rows of blocks move, so a quantized tensor stays quantized; a bias counts as rows of one element.
    """
    rows = tensor.shape[0]
    _refuse_uneven(tensor, 2 * heads, f"{heads} heads of rotary pairs")

    def read() -> NDArray[np.uint8]:
        pairs = tensor.data.reshape(heads, rows // heads // 2, 2, -1)
        return np.ascontiguousarray(pairs.swapaxes(1, 2))

    return replace(tensor, read=read)


def by_head(tensor: GgufTensor, heads: int, kv_heads: int) -> GgufTensor:
    """The tensor with its rows, all queries', then keys', then values', put key-value head by head; whole rows, too."""
    parts = heads + 2 * kv_heads if kv_heads > 0 and heads % kv_heads == 0 else 0
    _refuse_uneven(tensor, parts, f"{heads} heads of queries and {kv_heads} of keys and values")

    def read() -> NDArray[np.uint8]:
        each = np.split(tensor.data.reshape(parts, -1), [heads, heads + kv_heads])
        return np.concatenate([part.reshape(kv_heads, -1) for part in each], axis=1)

    return replace(tensor, read=read)


def _refuse_uneven(tensor: GgufTensor, parts: int, what: str) -> None:
    """Rows that move must be `parts` runs of equal length, and whole."""
    rows = tensor.shape[0]
    if parts < 1 or rows % parts or (len(tensor.shape) == 1 and tensor.type.block_size > 1):
        raise WeightsMismatch(
            f"the {rows} rows of {tensor.name} are not {what}",
            field=tensor.name,
            value=tensor.shape,
            limit=f"rows: a multiple of {parts}",
        )


def _module(name: str) -> str:
    """``q_proj`` of ``model.layers.0.self_attn.q_proj.weight``."""
    return name.rpartition(".")[0].rpartition(".")[2]


def _heads(config: dict[str, object], field: str) -> int:
    heads = config.get(field)
    if not isinstance(heads, int):
        raise WeightsMismatch(f"rows are put in order by {field}, a number of heads", field=field, value=heads)
    return heads
