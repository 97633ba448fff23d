"""Loading a model's weights completely, or not at all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from bestiary.api.errors import WeightsMismatch

from .auto import NOT_WEIGHTS, AutoWeightsLoader
from .fill import elements_filled, uses


def load_complete(model: nn.Module, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Fill `model` from a stream, by its own `load_weights` or the default loader; memory: the model and one tensor.

    Raises:
        WeightsMismatch: a tensor was used by nothing, or a parameter was left unfilled or filled twice; all at once.
    """
    watched = _Watched(weights)
    own: Any = getattr(model, "load_weights", None)
    if own is not None:
        loaded = own(watched)
    else:
        loaded = AutoWeightsLoader(model).load_weights(watched, mapper=getattr(model, "hf_to_vllm_mapper", None))
    problems = [f"{name}: in the checkpoint, but load_weights used it for nothing" for name in watched.unused]
    problems += _unfilled(model, set(loaded or ()))
    if problems:
        raise WeightsMismatch(
            f"{type(model).__name__} was not loaded completely: {len(problems)} problem(s)",
            details=problems,
            fix="check that the checkpoint is complete and of this architecture",
        )


class _Watched:
    """Passes a stream on, and notes the tensors that nothing was done with before the next was asked for."""

    def __init__(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        self.weights = weights
        self.unused: list[str] = []

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in self.weights:
            before = uses()
            try:
                yield name, tensor
            finally:
                if uses() == before and not any(part in name for part in NOT_WEIGHTS):
                    self.unused.append(name)


def _unfilled(model: nn.Module, loaded: set[str]) -> list[str]:
    problems = []
    for name, param in model.named_parameters():
        filled = elements_filled(param)
        if filled == 0 and name in loaded:
            continue
        if filled != param.numel():
            how = "filled more than once" if filled > param.numel() else "not filled by the checkpoint"
            problems.append(f"{name} {list(param.shape)}: {how} ({filled} of {param.numel()} elements)")
    return problems
