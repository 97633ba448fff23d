"""Moving experts among ranks: every rank sends exactly what others lack, from the weights where they lie.

A move is the same for all that belongs to an expert: packed weights, scales, an adapter's factors. Only what a rank
takes in is staged, so the peak is one layer's experts of one rank beside the model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from bestiary.api.errors import ConfigError

from .placement import ExpertPlacement

if TYPE_CHECKING:
    from bestiary.nn.parallel.distributed import TorchGroup

    from .layer import FusedMoE


class Move(NamedTuple):
    """An expert that a rank puts into `slots`: from slot `source_slot` of rank `source`, which may be itself."""

    rank: int
    slots: tuple[int, ...]
    source: int
    source_slot: int


def moves(old: ExpertPlacement, new: ExpertPlacement) -> list[Move]:
    """What changes between two placements, in an order that all ranks go by.

    A rank that held an expert moves it by itself; otherwise it gets it once, from the holder that sends least so far.
    """
    found = []
    sent: Counter[int] = Counter()
    for rank in range(new.num_ranks):
        before, after = old.on_rank(rank), new.on_rank(rank)
        changed = [slot for slot, expert in enumerate(after) if before[slot] != expert]
        for expert in dict.fromkeys(after[slot] for slot in changed):
            holders = [divmod(physical, old.num_local) for physical in old.copies()[expert]]
            source, source_slot = min(holders, key=lambda holder: (holder[0] != rank, sent[holder[0]], holder))
            sent[source] += source != rank
            found.append(Move(rank, tuple(slot for slot in changed if after[slot] == expert), source, source_slot))
    return found


def move_experts(layer: FusedMoE, placement: ExpertPlacement, group: TorchGroup) -> None:
    """Bring `layer` from its placement to another one; every rank of `group` calls it between the same two steps."""
    _move_tensors(layer, moves(layer.placement, placement), group)
    layer.set_placement(placement)


@torch.inference_mode()
def _move_tensors(layer: FusedMoE, changes: Sequence[Move], group: TorchGroup) -> None:
    taken: list[tuple[Move, list[torch.Tensor]]] = []
    for move in changes:
        if move.rank == group.rank:
            taken.append((move, _taken(layer, move, group)))
        elif move.source == group.rank:
            for each in layer.expert_tensors(move.source_slot):
                group.send(_as_bytes(each), move.rank)
    group.wait_for_sends()  # what leaves is read from where it lies: nothing may be written before
    for move, tensors in taken:
        for slot in move.slots:
            for own, new in zip(layer.expert_tensors(slot), tensors, strict=True):
                own.copy_(new)


def _taken(layer: FusedMoE, move: Move, group: TorchGroup) -> list[torch.Tensor]:
    """Copies of what this rank is to put into the slots of `move`."""
    if move.source == group.rank:
        return [each.clone() for each in layer.expert_tensors(move.source_slot)]
    like = layer.expert_tensors(move.slots[0])
    copies = [torch.empty_like(each, memory_format=torch.contiguous_format) for each in like]
    for each in copies:
        group.receive(_as_bytes(each), move.source)
    return copies


def refuse_unlike_slots(layer: FusedMoE) -> None:
    """A `ConfigError` where what one slot holds does not fit into another, or cannot be copied at all."""
    layouts = [[(each.shape, each.dtype, each.layout) for each in layer.expert_tensors(slot)]
               for slot in range(layer.placement.num_local)]  # fmt: skip
    for slot, layout in enumerate(layouts):
        if layout != layouts[0] or any(each is not torch.strided for _, _, each in layout):
            raise ConfigError(
                f"the experts of {layer.layer_name} cannot move: slot {slot} is laid out in a way of its own",
                code="EXPERTS_CANNOT_MOVE", field="enable_eplb", value=[str(list(each[0])) for each in layout],
                limit="dense tensors of the same shapes and dtypes in every slot", fix="leave out enable_eplb",
            )  # fmt: skip


def _as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Its memory as uint8 ``[bytes]``: the same memory where it is contiguous, otherwise a copy."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)
