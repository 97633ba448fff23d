"""How checkpoints name the weights of experts, and where each belongs: the one mapping for all of them.

    3.gate_proj.weight      one projection of one expert
    gate_proj.weight        that projection of all experts, stacked                    [experts, out, in]
    gate_up_proj.weight     gate and up projection of all experts, the gate's rows first
    gate_up_proj            the same, as transformers keeps it in memory

The three projections go by the names that the layer is given: ``("w1", "w2", "w3")`` for Mixtral's gate, down, up.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from bestiary.api.errors import WeightsMismatch

DEFAULT_NAMES = ("gate_proj", "down_proj", "up_proj")
"""Gate, down, up."""

FUSED = "gate_up_proj"


class Place(NamedTuple):
    """expert: None for all of them. stack: "w13" or "w2". shard: 0 the gate, 1 the up projection, None all there is."""

    expert: int | None
    stack: str
    shard: int | None
    parameter: str


def place_of(name: str, ckpt_names: tuple[str, str, str] = DEFAULT_NAMES, gated: bool = True) -> Place | None:
    """Where the tensor called `name`, below the layer's own name, belongs; None for a name of another kind.

    Experts that are not `gated` have no gate projection.
    """
    head, dot, rest = name.partition(".")
    expert = None
    if head.isdecimal() and dot:
        expert = int(head)
        head, _, rest = rest.partition(".")
    gate, down, up = ckpt_names
    found: dict[str, tuple[str, int | None]] = {down: ("w2", None), "down_proj": ("w2", None)}
    found |= {gate: ("w13", 0), up: ("w13", 1), FUSED: ("w13", None)} if gated else {up: ("w13", None)}
    if head not in found:
        return None
    stack, shard = found[head]
    return Place(expert, stack, shard, rest or "weight")


def merged_name(name: str) -> str:
    """The name under which the same weights of all experts are stored together: ``experts.3.w1`` → ``experts.w1``."""
    head, _, leaf = name.rpartition(".")
    owner, _, number = head.rpartition(".")
    return f"{owner}.{leaf}" if owner and number.isdecimal() else name


def parts_of(tensor: torch.Tensor, place: Place, num_experts: int) -> list[tuple[int, torch.Tensor]]:
    """The experts that a checkpoint tensor is of, each with its part.

    Raises:
        WeightsMismatch: it is of another number of experts, or of one that is not there.
    """
    if place.expert is None:
        if tensor.dim() == 0 or len(tensor) != num_experts:
            raise WeightsMismatch(f"expected {num_experts} experts in dimension 0")
        return list(enumerate(tensor))
    if place.expert >= num_experts:
        raise WeightsMismatch(f"there is no expert {place.expert}", limit=f"0…{num_experts - 1}")
    return [(place.expert, tensor)]
