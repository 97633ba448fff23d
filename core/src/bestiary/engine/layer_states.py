"""The states of a model's layers: which layers have one, and the tensors that hold those of all sequences."""

from __future__ import annotations

from torch import Tensor, device, nn

from bestiary.nn.state.spec import HasState, StateSpec
from bestiary.nn.zeros import untouched_zeros


def state_specs(model: nn.Module) -> dict[str, StateSpec]:
    """What each layer with a state keeps for every sequence, by full name: asked of it, whatever its class claims."""
    return {module.layer_name: module.get_state_spec() for module in model.modules() if isinstance(module, HasState)}


def bytes_per_row(model: nn.Module) -> int:
    """Of one sequence's states in all layers here."""
    return sum(spec.bytes_per_row for spec in state_specs(model).values())


def make_states(model: nn.Module, rows: int, where: device) -> dict[str, tuple[Tensor, ...]]:
    """Layer name → ``[rows, *shape]`` for each of its tensors."""
    return {
        name: tuple(
            untouched_zeros((rows, *shape), dtype, where) for shape, dtype in zip(spec.shapes, spec.dtypes, strict=True)
        )
        for name, spec in state_specs(model).items()
    }
