"""What a layer with a state says of it, and where it finds the state in a step."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from bestiary.api.errors import EngineError
from bestiary.nn.context import get_forward_context


@dataclass(frozen=True, kw_only=True)
class StateSpec:
    """What one sequence's state is on this rank, whatever its length: tensors of these shapes and dtypes."""

    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]

    @property
    def bytes_per_row(self) -> int:
        return sum(prod(shape) * dtype.itemsize for shape, dtype in zip(self.shapes, self.dtypes, strict=True))


@runtime_checkable
class HasState(Protocol):
    """A layer that keeps something of a sequence whose size does not grow with it."""

    layer_name: str

    def get_state_spec(self) -> StateSpec:
        """One sequence's state on this rank."""
        ...


def read_states(layer_name: str) -> tuple[Tensor, ...]:
    """The sequences' states before this step's first tokens: ``[seqs, *shape]`` each, zeros where a sequence begins.

    Fresh tensors, which the caller may change.
    """
    rows = _rows("state_read")
    begins = rows < 0
    found = (rows_of[rows.clamp_min(0)] for rows_of in _held(layer_name))
    return tuple(each.masked_fill_(begins.view(-1, *[1] * (each.dim() - 1)), 0) for each in found)


def write_states(layer_name: str, tensors: tuple[Tensor, ...]) -> None:
    """Keep `tensors`, ``[seqs, *shape]`` each, as the sequences' states after this step's last tokens."""
    rows = _rows("state_write")
    for held, new in zip(_held(layer_name), tensors, strict=True):
        held[rows] = new.to(held.dtype)


def _held(layer_name: str) -> tuple[Tensor, ...]:
    try:
        return get_forward_context().states[layer_name]
    except KeyError as error:
        raise EngineError(
            f"no state was made for layer {layer_name!r}", field="layer_name", value=layer_name
        ) from error


def _rows(which: str) -> Tensor:
    rows: Tensor | None = getattr(get_forward_context().attention, which)
    if rows is None:
        raise EngineError(f"this step says nothing of states: {which} is missing", field=which)
    return rows
