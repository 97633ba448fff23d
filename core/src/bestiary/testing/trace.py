"""Where a model leaves its reference: the first module, by name, whose output differs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_RELATIVE = 2e-5


def first_difference(
    ours: nn.Module, run_ours: Callable[[], object], theirs: nn.Module, run_theirs: Callable[[], object]
) -> str | None:
    """A line naming the first module after which nothing agrees, in the reference's order; None if none is found.

    Modules are matched by name, ours as the class's `hf_to_vllm_mapper` renames them. Where ours returns a pair
    (hidden states, residual), its sum counts as well. A hint, not a proof: equal names may mean different things, and
    one that differs before others agree is taken for such a name.
    """
    with _recorded(ours) as got:
        run_ours()
    with _recorded(theirs) as want:
        run_theirs()
    mapper: Any = getattr(ours, "hf_to_vllm_mapper", None)
    agreed, differs = "none", ""
    for name, outputs in want.items():
        candidates = [each for each in got.get(_renamed(name, mapper), []) if each.numel() == outputs[0].numel()]
        if any(_close(each, outputs[0]) for each in candidates):
            agreed, differs = name, ""
        elif candidates:
            differs = differs or name
    return f"first module whose output differs: {differs} (the last that agrees: {agreed})" if differs else None


def _renamed(name: str, mapper: Any) -> str:
    if mapper is None:
        return name
    renamed = mapper.map_name(f"{name}.weight")
    return name if renamed is None else str(renamed).removesuffix(".weight")


def _close(got: torch.Tensor, want: torch.Tensor) -> bool:
    limit = _RELATIVE * max(1.0, float(want.abs().max()))
    return float((got.flatten() - want.flatten()).abs().max()) <= limit


@contextmanager
def _recorded(model: nn.Module) -> Iterator[Mapping[str, list[torch.Tensor]]]:
    """Module name → the tensors it first returned (and the sum of the first two), in order of completion."""
    outputs: dict[str, list[torch.Tensor]] = {}

    def record(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _arguments: object, returned: object) -> None:
            if name not in outputs and (tensors := _tensors(returned)):
                outputs[name] = tensors

        return hook

    handles = [each.register_forward_hook(record(name)) for name, each in model.named_modules() if name]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _tensors(returned: object) -> list[torch.Tensor]:
    parts: Sequence[object] = returned if isinstance(returned, tuple | list) else [returned]
    found = [part.detach().float().clone() for part in parts if isinstance(part, torch.Tensor)]
    if len(found) > 1 and found[0].shape == found[1].shape:
        found.append(found[0] + found[1])
    return found
