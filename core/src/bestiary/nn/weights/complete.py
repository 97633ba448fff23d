"""Loading a model's weights completely, or not at all."""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from bestiary.api.errors import WeightsMismatch

from .auto import NOT_WEIGHTS, AutoWeightsLoader
from .fill import elements_filled, used_addresses, uses

logger = logging.getLogger("bestiary")
_SHOWN = 8


def load_complete(model: nn.Module, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Fill `model` from a stream, by its own `load_weights` or the default loader; memory: the model and one tensor.

    Where an own `load_weights` fills every parameter and leaves tensors out, that is its author's decision, and is said
    in one line; the default loader leaves out only what was declared.

    Raises:
        WeightsMismatch: a parameter was left unfilled or filled twice, or the default loader knows no use for a tensor;
            all at once, with the tensors that were used for nothing.
    """
    watched = _Watched(weights)
    own: Any = getattr(model, "load_weights", None)
    if own is not None:
        _mark_unwritten(model)
        loaded = own(watched)
        for _ in watched.rest():  # what it did not ask for is looked at as well
            pass
    else:
        loaded = AutoWeightsLoader(model).load_weights(watched, mapper=getattr(model, "hf_to_vllm_mapper", None))
    loaded = set(loaded or ())
    unused = [name for name in watched.unused if name not in loaded]
    problems = _unfilled(model, loaded)
    if unused and own is not None and not problems:
        more = " …" if len(unused) > _SHOWN else ""
        logger.warning(
            "%s.load_weights leaves %d checkpoint tensor(s) out: %s%s",
            type(model).__name__, len(unused), ", ".join(unused[:_SHOWN]), more,
        )  # fmt: skip
        return
    problems = [f"{name}: in the checkpoint, but load_weights used it for nothing" for name in unused] + problems
    if problems:
        raise WeightsMismatch(
            f"{type(model).__name__} was not loaded completely: {len(problems)} problem(s)",
            details=problems,
            fix="check that the checkpoint is complete and of this architecture",
        )


class _Watched:
    """Passes a stream on, and notes the tensors that nothing was done with, then or later."""

    def __init__(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        self._stream = self._watch(iter(weights))
        self._passed_over: dict[str, range] = {}
        used_addresses(forget=True)

    @property
    def unused(self) -> list[str]:
        """Those passed over when they came, less those that a loader had put aside and used after all."""
        used = sorted(used_addresses())
        return [name for name, place in self._passed_over.items() if not _any_in(place, used)]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        return self._stream

    def rest(self) -> Iterator[tuple[str, torch.Tensor]]:
        """What nobody asked for."""
        return self._stream

    def _watch(self, weights: Iterator[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in weights:
            before = uses()
            try:
                yield name, tensor
            finally:
                if uses() == before and not any(part in name for part in NOT_WEIGHTS):
                    self._passed_over[name] = range(tensor.data_ptr(), tensor.data_ptr() + max(tensor.nbytes, 1))


def _any_in(place: range, ascending: list[int]) -> bool:
    at = bisect_left(ascending, place.start)
    return at < len(ascending) and ascending[at] in place


def _mark_unwritten(model: nn.Module) -> None:
    """NaN in every parameter, so that one which a loader only says it wrote is known."""
    for param in model.parameters():
        if param.is_floating_point() and param.dtype.itemsize > 1:
            param.data.fill_(torch.nan)


def _unfilled(model: nn.Module, loaded: set[str]) -> list[str]:
    problems = []
    for name, param in model.named_parameters():
        filled = elements_filled(param)
        if filled == 0 and name in loaded:  # written past `fill`
            filled = param.numel() - int(torch.isnan(param).sum()) if param.is_floating_point() else param.numel()
        if filled != param.numel():
            how = "filled more than once" if filled > param.numel() else "not filled by the checkpoint"
            problems.append(f"{name} {list(param.shape)}: {how} ({filled} of {param.numel()} elements)")
    return problems
