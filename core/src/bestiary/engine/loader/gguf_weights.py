"""A GGUF file as a checkpoint: (name, tensor) pairs under the checkpoint's names, one tensor alive at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from bestiary.api.errors import WeightsMismatch
from bestiary.api.gguf import GgufArchitecture
from bestiary.engine.loader.gguf_config import gguf_config
from bestiary.engine.loader.gguf_dequant import dequantize
from bestiary.engine.loader.gguf_names import checkpoint_names
from bestiary.engine.loader.gguf_reader import GgufFile, GgufTensor


def gguf_tensors(file: GgufFile, declaration: GgufArchitecture) -> Iterator[tuple[str, torch.Tensor]]:
    """Every weight in float32, decoded when it is asked for. Peak memory beyond the file's map: two tensors.

    Raises:
        WeightsMismatch: tensors nobody knows; before the first pair.
        LoadError: a type that cannot be decoded.
    """
    for name, tensor in gguf_block_tensors(file, declaration):
        yield name, dequantize(tensor.data, tensor.type, tensor.shape)


def gguf_block_tensors(file: GgufFile, declaration: GgufArchitecture) -> Iterator[tuple[str, GgufTensor]]:
    """Every weight as its file's blocks, rows already in the checkpoint's order; for quantized execution."""
    names = checkpoint_names(file, declaration)
    config = gguf_config(file, declaration)
    for gguf_name, name in names.items():
        tensor = replace(file.tensors[gguf_name], name=name)
        heads_field = declaration.rope_interleaved.get(_module(name))
        yield name, tensor if heads_field is None else half_split(tensor, _heads(config, heads_field))


def half_split(tensor: GgufTensor, heads: int) -> GgufTensor:
    """The tensor with each head's rows put from interleaved rotary pairs (0, d/2, 1, d/2 + 1, …) into order.

    Whole rows of blocks move, so a quantized tensor stays quantized; a bias counts as rows of one element.
    """
    rows = tensor.shape[0]
    if heads < 1 or rows % (2 * heads) or (len(tensor.shape) == 1 and tensor.type.block_size > 1):
        raise WeightsMismatch(
            f"the {rows} rows of {tensor.name} are not {heads} heads of rotary pairs",
            field=tensor.name,
            value=tensor.shape,
            limit=f"rows: a multiple of 2 × {heads}",
        )

    def read() -> NDArray[np.uint8]:
        pairs = tensor.data.reshape(heads, rows // heads // 2, 2, -1)
        return np.ascontiguousarray(pairs.swapaxes(1, 2))

    return replace(tensor, read=read)


def _module(name: str) -> str:
    """``q_proj`` of ``model.layers.0.self_attn.q_proj.weight``."""
    return name.rpartition(".")[0].rpartition(".")[2]


def _heads(config: dict[str, object], field: str) -> int:
    heads = config.get(field)
    if not isinstance(heads, int):
        raise WeightsMismatch(f"rotary rows need {field}, a number of heads", field=field, value=heads)
    return heads
