"""The slots of one layer: room for a fixed number of adapters' factors, written when an adapter is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from bestiary.api.errors import EngineError
from bestiary.nn.context import get_forward_context_or_none
from bestiary.nn.ops.lora import add_lora, add_lora_embedding
from bestiary.nn.zeros import untouched_zeros

from .rows import SlotRows


class Factors(NamedTuple):
    """One adapter's factors for one layer, this rank's part of them; `b` is scaled. Shapes as in `LayerSlots`."""

    a: torch.Tensor
    b: torch.Tensor


class LayerSlots:
    """Factors of one layer, for every slot.

    Attributes:
        a: ``[slots, shards, rank, in]``, of an embedding ``[slots, vocabulary, rank]``, with a dimension of experts
            after the slots for those. b: ``[slots, out, rank]``, likewise.
        sizes: the outputs of each shard. ranks: slot → rank of the adapter in it, of slots that hold anything.
    """

    def __init__(
        self,
        name: str,
        a: tuple[int, ...],
        b: tuple[int, ...],
        sizes: Sequence[int],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.name = name
        self.sizes = tuple(sizes)
        self.ranks: dict[int, int] = {}
        self.a = untouched_zeros(a, dtype, device)
        self.b = untouched_zeros(b, dtype, device)

    @property
    def nbytes(self) -> int:
        return self.a.nbytes + self.b.nbytes

    def load(self, slot: int, factors: Factors | None) -> None:
        """Put an adapter's factors into `slot`, in place of what was there; None: it has none for this layer."""
        if self.ranks.pop(slot, None) is not None:
            self.a[slot].zero_()
            self.b[slot].zero_()
        if factors is None:
            return
        target = self.a[slot]
        target[tuple(slice(size) for size in factors.a.shape)].copy_(factors.a)
        rank = factors.b.shape[-1]
        self.b[slot][..., :rank].copy_(factors.b)
        self.ranks[slot] = rank

    def rows(self, count: int) -> SlotRows | None:
        """Which of the step's rows have factors here; None where none has."""
        rows = step_rows(self.name, count) if self.ranks else None
        return None if rows is None else rows.within(self.ranks)

    def add(self, out: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """`out` with what the rows' adapters make of `x` added in place."""
        rows = self.rows(x.shape[0])
        return out if rows is None else add_lora(out, x, self.a, self.b, self.sizes, rows, self.ranks)

    def add_embedding(self, out: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """The same for an embedding of `ids`."""
        rows = self.rows(ids.shape[0])
        return out if rows is None else add_lora_embedding(out, ids, self.a, self.b, rows, self.ranks)

    def add_expert(self, expert: int, out: torch.Tensor, x: torch.Tensor, rows: SlotRows) -> torch.Tensor:
        """The same for one expert, whose rows are known to the caller alone."""
        return add_lora(out, x, self.a[:, expert], self.b[:, expert], self.sizes, rows, self.ranks)


class ExpertSlots:
    """The slots of a `FusedMoE`: of all its gate-and-up layers, and of all its down layers."""

    def __init__(self, gate_up: LayerSlots, down: LayerSlots) -> None:
        self.gate_up = gate_up
        self.down = down

    def rows(self, count: int) -> SlotRows | None:
        """Which of the step's rows have an adapter with experts; None where none has."""
        held = {*self.gate_up.ranks, *self.down.ranks}
        rows = step_rows(self.gate_up.name, count) if held else None
        return None if rows is None else rows.within(held)


def step_rows(layer_name: str, count: int) -> SlotRows | None:
    """The rows of the step being run, as a layer that computes `count` of them sees it; None without adapters.

    Raises:
        EngineError: the layer computes another number of rows than the step has.
    """
    context = get_forward_context_or_none()
    if context is None or context.lora is None:
        return None
    if len(context.lora) != count:
        raise EngineError(
            f"{layer_name} computes {count} rows where the step has {len(context.lora)}: which adapter is meant for "
            "each is not known",
            code="LORA_ROWS", field=layer_name, limit="a row for each token of the step",
        )  # fmt: skip
    return context.lora
