"""`PackedWeight`: a weight in a form that one version of an op made for itself."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import nn

from bestiary.api.errors import EngineError

_COMPUTING = frozenset(
    {
        "linear",
        "matmul",
        "mm",
        "mv",
        "addmm",
        "bmm",
        "einsum",
        "embedding",
        "index_select",
        "add",
        "mul",
        "t",
        "mT",
        "T",
    }
)
"""What takes bytes for numbers. They may be moved about, looked at and counted."""


class PackedWeight(nn.Parameter):
    """Bytes, uint8 ``[n]``, and what their maker knows of them.

    Attributes:
        contents: the maker's own. shape_before: of the matrix that it was made of, or of several alike. form: a word
            for people. num_weights: the matrix's elements.
    """

    contents: Any
    shape_before: tuple[int, ...]
    form: str
    num_weights: int

    @classmethod
    def of(cls, data: torch.Tensor, contents: Any, shape: tuple[int, ...], form: str) -> PackedWeight:
        made = torch.Tensor._make_subclass(cls, data, False)
        made.contents, made.shape_before, made.form = contents, shape, form
        made.num_weights = prod(shape)
        return made

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") in _COMPUTING:
            shape = next(each.shape_before for each in args if isinstance(each, PackedWeight))
            raise EngineError(
                f"a packed weight is no matrix: {func.__name__} cannot read it",
                field="weight", value=list(shape), limit="the layer's own product, or lookup",
                fix="call the layer; or --op linear=reference keeps weights plain",
            )  # fmt: skip
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))
