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
from .renames import Renames

logger = logging.getLogger("bestiary")
_SHOWN = 8


def load_complete(
    model: nn.Module, weights: Iterable[tuple[str, torch.Tensor]], renames: Renames | None = None
) -> None:
    """Fill `model` from a stream, by its own `load_weights` or the default loader; memory: the model and one tensor.

    Where an own `load_weights` fills every parameter and leaves tensors out, that is its author's decision, and is said
    in one line; the default loader leaves out only what was declared. What it writes past the parameters' loaders, into
    their memory, cannot be told from what it leaves out, and the line says so.

    Args:
        renames: what an alias does to the stream's names before the model sees them.

    Raises:
        WeightsMismatch: a parameter was left unfilled or filled twice, or the default loader knows no use for a tensor;
            all at once, with the tensors that were used for nothing, under the stream's names.
    """
    watched = _Watched(weights)
    try:
        loaded = _load(model, watched, iter(watched) if renames is None else renames.apply(watched))
    except WeightsMismatch as error:
        if renames is None:
            raise
        raise renames.explained(error, getattr(model, "hf_to_vllm_mapper", None)) from error
    own = hasattr(model, "load_weights")
    unused = [name for name in watched.unused if (name if renames is None else renames.new_name(name)) not in loaded]
    problems = _unfilled(model, loaded)
    if unused and own and not problems:
        more = " …" if len(unused) > _SHOWN else ""
        past = sum(elements_filled(param) == 0 for param in model.parameters() if param.numel())
        words = f" out, or writes them itself into some of {past} parameter(s)" if past else " out"
        logger.warning(
            "%s.load_weights leaves %d checkpoint tensor(s)%s: %s%s",
            type(model).__name__, len(unused), words, ", ".join(unused[:_SHOWN]), more,
        )  # fmt: skip
        return
    problems = [f"{name}: in the checkpoint, but load_weights used it for nothing" for name in unused] + problems
    if problems:
        raise WeightsMismatch(
            f"{type(model).__name__} was not loaded completely: {len(problems)} problem(s)",
            details=problems,
            fix="check that the checkpoint is complete and of this architecture",
        )


def _load(model: nn.Module, watched: _Watched, stream: Iterator[tuple[str, torch.Tensor]]) -> set[str]:
    """The names that the model's own loader, or ours, says it filled. The whole stream has gone by afterwards."""
    own: Any = getattr(model, "load_weights", None)
    if own is None:
        return AutoWeightsLoader(model).load_weights(stream, mapper=getattr(model, "hf_to_vllm_mapper", None))
    _mark_unwritten(model)
    loaded = own(stream)
    for _ in watched.rest():  # what it did not ask for is looked at as well
        pass
    return set(loaded or ())


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
    said = {id(param) for name, param in model.named_parameters(remove_duplicate=False) if name in loaded}
    for name, param in model.named_parameters():
        if param.is_meta:
            problems.append(f"{name} {list(param.shape)}: left on the meta device by load_weights")
            continue
        filled = elements_filled(param)
        if filled == 0 and id(param) in said:  # written past `fill`
            filled = param.numel() - int(torch.isnan(param).sum()) if param.is_floating_point() else param.numel()
        if filled != param.numel():
            how = "filled more than once" if filled > param.numel() else "not filled by the checkpoint"
            problems.append(f"{name} {list(param.shape)}: {how} ({filled} of {param.numel()} elements)")
    return problems
