"""`BlockTensor`: a tensor of a GGUF file on its way into a model, still in its blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from bestiary.api.ggml_types import GgmlType

_TAKE_ROWS: frozenset[Callable[..., Any]] = frozenset(
    (
        torch.Tensor.__getitem__, torch.Tensor.unbind, torch.Tensor.narrow, torch.Tensor.split, torch.Tensor.chunk,
        torch.unbind, torch.narrow, torch.split, torch.chunk,
    )
)  # fmt: skip
"""What can take rows, or experts, of a tensor as a view of it."""


class BlockTensor(torch.Tensor):
    """uint8 ``[…, rows, bytes per row]``; `ggml_type` says what the bytes mean.

    A loader may take it apart by rows or by experts. The result of anything else is plain bytes, which nothing takes
    for weights.
    """

    ggml_type: GgmlType

    @classmethod
    def of(cls, data: torch.Tensor, type: GgmlType) -> BlockTensor:
        """`data` itself, under its type."""
        made: BlockTensor = data.as_subclass(cls)
        made.ggml_type = type
        return made

    @property
    def plain(self) -> torch.Tensor:
        """The bytes, as an ordinary tensor."""
        return self.as_subclass(torch.Tensor)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
        if func not in _TAKE_ROWS or not isinstance(args[0], BlockTensor):
            return result
        source = args[0]
        if isinstance(result, torch.Tensor):
            return source._typed(result)
        return type(result)(source._typed(each) for each in result)

    def _typed(self, part: torch.Tensor) -> torch.Tensor:
        """`part` under the type, if it is a view of whole rows."""
        own = self.plain
        view = part.untyped_storage().data_ptr() == own.untyped_storage().data_ptr()
        whole = part.dim() > 0 and part.shape[-1] == own.shape[-1] and part.stride(-1) == own.stride(-1)
        return BlockTensor.of(part, self.ggml_type) if view and whole else part
