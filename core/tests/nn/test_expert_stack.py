"""What is left of experts' stacked parameters when their methods have finished."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bestiary.nn.linear import ReplicatedLinear
from bestiary.nn.moe.stack import ExpertStack
from bestiary.nn.placement import materialize


@pytest.mark.parametrize("widths", [(8, 8), (8, 40)])
def test_what_methods_made_is_stacked_where_it_is_alike_and_nothing_else_stays(widths: tuple[int, int]) -> None:
    owner = nn.Module()
    stack = ExpertStack(owner, "w", 2, lambda: ReplicatedLinear(8, 4, bias=False, return_bias=False))
    stack.place(None, ["first", "second"])
    materialize(owner, torch.device("cpu"))
    stack.bind()
    for layer, width in zip(stack.layers, widths, strict=True):
        made = nn.Parameter(torch.full((4, width), float(width)), requires_grad=False)
        layer.finish = lambda layer=layer, made=made: layer._parameters.update(weight=made)  # type: ignore[method-assign]
    stack.finish()
    alike = len(set(widths)) == 1
    assert ("w_weight" in owner._parameters) == alike
    for layer, width in zip(stack.layers, widths, strict=True):
        assert torch.equal(layer.weight, torch.full((4, width), float(width)))
        storage = layer.weight.untyped_storage()
        assert storage.nbytes() == layer.weight.nbytes * (2 if alike else 1)
