"""How the parameters of quantized layers say which part of them a rank, or one part of a fused layer, has.

`output_dim` and `input_dim` are the dimensions that run over outputs and inputs, as with plain weights. One element
along `output_dim` may stand for several outputs: `output_step` many, or all of one part of a fused layer (`PER_PART`).
Along `input_dim` no such number is needed, since a rank's share of the inputs is that share of whatever covers them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from bestiary.api.errors import ConfigError, WeightsMismatch
from bestiary.nn.parallel import refuse
from bestiary.nn.weights.fill import num_weights, set_weight_attrs

PER_PART = 0
"""The `output_step` of a scale that each part of a fused layer has one of."""


def add_parameter(
    layer: nn.Module, name: str, shape: Sequence[int], dtype: torch.dtype, attrs: dict[str, Any], **more: Any
) -> None:
    """Register an empty parameter on the meta device with its loading attributes; a None among them is left out.

    Only one called `weight` stands for weights of the model: `num_weights`, or its elements.
    """
    more = {"num_weights": None if name == "weight" else 0, **more}
    made = nn.Parameter(torch.empty(*shape, dtype=dtype, device="meta"), requires_grad=False)
    set_weight_attrs(made, {key: value for key, value in {**attrs, **more}.items() if value is not None})
    layer.register_parameter(name, made)


def replace_parameter(layer: nn.Module, name: str, value: torch.Tensor) -> None:
    """Put `value`, of another shape, in the place of a loaded parameter, which stands for as many weights."""
    count = num_weights(layer._parameters[name])  # type: ignore[arg-type]
    layer._parameters[name] = nn.Parameter(value, requires_grad=False)
    set_weight_attrs(layer._parameters[name], {"num_weights": count})  # type: ignore[arg-type]


def extent(outputs: int, step: int) -> int:
    """How many elements cover so many outputs."""
    return 1 if step == PER_PART else -(-outputs // step)


def step_of(param: torch.Tensor) -> int:
    """A parameter's `output_step`: 1 unless it says otherwise."""
    step: int = getattr(param, "output_step", 1)
    return step


def refuse_cut_groups(layer: nn.Module, size: int, whole: int, group: int, what: str) -> None:
    """A `ConfigError` where a rank's share of inputs or outputs would cut a group of them that shares a scale."""
    if size != whole and size % group:
        name = getattr(layer, "layer_name", "") or type(layer).__name__
        refuse(
            ConfigError(
                f"{name}: {whole} {what} in groups of {group} cannot be divided among {whole // size} ranks",
                code="BAD_QUANTIZATION", field="tensor_parallel_size", value=whole // size,
                limit=f"each rank's share ({size} {what}) holds whole groups of {group}",
                fix=f"choose a tensor-parallel size for which {whole} / size is a multiple of {group}",
            )
        )  # fmt: skip


def per_row(scale: torch.Tensor) -> torch.Tensor:
    """``[parts, …]``, or ``[blocks of rows, …]``, → ``[rows, …]``: the scale of each row of the layer.

    Read from the parameter: `part_sizes`, the outputs of each part of a fused layer, and its `output_step`.
    """
    sizes: list[int] = scale.part_sizes  # type: ignore[attr-defined]
    step = step_of(scale)
    rows = []
    for part, size in zip(torch.split(scale.data, [extent(each, step) for each in sizes]), sizes, strict=True):
        rows.append(part.repeat_interleave(size if step == PER_PART else step, dim=0)[:size])
    return torch.cat(rows)


def one_for_all(scale: torch.Tensor, layer: nn.Module, name: str) -> torch.Tensor:
    """What the parts of a fused layer, which share their input, have each stored of it: it must be the same."""
    if bool((scale != scale[0]).any()):
        where = getattr(layer, "layer_name", "") or type(layer).__name__
        raise WeightsMismatch(
            f"{where}: the parts of this fused layer have different {name}, and one input",
            field=f"{where}.{name}", value=scale.tolist(), limit="the same for all parts",
        )  # fmt: skip
    return scale[0].clone()
