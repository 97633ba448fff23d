"""A step is recorded while it runs: every kernel call with its addresses, and whatever torch does between them.

Ops of this package tell the recorder of their calls (`add`). What models do with torch itself, the dispatcher sees:
views cost nothing, since addresses stay; other functions are called again, and their result is copied to where it was.
A function that looks at numbers, or whose result's shape depends on them, cannot be called again for other numbers:
`NotRecordable` says which, and the step is computed as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bestiary.nn.graphs import NotRecordable

from .arena import Arena
from .pool import Call

_EMPTY = {"empty", "empty_strided", "new_empty", "empty_like", "new_empty_strided"}
_INDEXING = {"index", "index_put", "index_put_", "_unsafe_index"}
_FILLED = {"zeros", "zeros_like", "new_zeros", "ones", "ones_like", "new_ones", "full", "full_like", "new_full"}
_PAST_THE_DISPATCHER = {Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__dlpack__}
_LOOKING = {"_local_scalar_dense", "equal", "is_nonzero", "item"}


@dataclass(frozen=True, slots=True)
class TorchCall:
    """A function of torch, to be called again; `result` holds what it gave, unless it wrote where it was told to."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: tuple[Tensor, ...]

    def __call__(self) -> None:
        made = self.function(*self.args, **self.kwargs)
        for old, new in zip(self.result, tree_leaves(made), strict=False):
            old.copy_(new)


class NoLooking(TorchFunctionMode):
    """Methods that hand a tensor's numbers to Python past the dispatcher are refused while a step is recorded."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _PAST_THE_DISPATCHER:
            raise NotRecordable(f"Tensor.{func.__name__} looks at numbers")
        return func(*args, **(kwargs or {}))


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """One step. Attributes: nodes: in order. kept: tensors outside the arena that nodes point to."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing here is compiled, and torch's guard against that imports its compiler."""
        return False

    def __init__(self, arena: Arena) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.arena = arena
        self.nodes: list[Call | TorchCall] = []
        self.kept: dict[int, object] = {}
        self.constants: dict[int, TorchCall] = {}

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return self.arena.empty(shape, dtype)

    def add(self, calls: Sequence[Call], keep: Sequence[Tensor | None]) -> None:
        self.nodes += calls
        for tensor in keep:
            self._keep(tensor)

    def keep(self, held: object) -> None:
        """Have something live as long as the recorded step."""
        self.kept[id(held)] = held

    def _keep(self, tensor: Tensor | None) -> None:
        if tensor is not None and not self.arena.owns(tensor.data_ptr()):
            self.keep(tensor)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if _is_composite(func):
            with self:
                return func.decompose(*args, **kwargs)
        _refuse_looking(func, args)
        result = func(*args, **kwargs)
        name = func._schema.name.partition("::")[2]
        if name in _EMPTY or _is_view(func):
            for each in tree_leaves(result):
                self._keep(each)
        else:
            self._note(name, TorchCall(func, args, kwargs, () if _writes(func) else _tensors(func, result)))
        return result

    def _note(self, name: str, call: TorchCall) -> None:
        """A call to be made again. What holds one number throughout is filled again only if it is written to."""
        if name in _FILLED:
            (made,) = call.result
            self.keep(made)
            self.constants[made.untyped_storage().data_ptr()] = call
            return
        self.nodes.append(call)
        if not call.result:
            for each in tree_leaves((call.args, call.kwargs)):
                if isinstance(each, Tensor):
                    self._refill(each)

    def _refill(self, written: Tensor) -> None:
        made = self.constants.pop(written.untyped_storage().data_ptr(), None)
        if made is not None:
            self.nodes.insert(0, made)


def _is_composite(func: Any) -> bool:
    return bool(func._can_decompose())


def _refuse_looking(func: Any, args: tuple[Any, ...]) -> None:
    name, tags = func._schema.name.partition("::")[2], func.tags
    looking = name in _LOOKING or torch.Tag.data_dependent_output in tags or torch.Tag.dynamic_output_shape in tags
    if looking and not (name in _INDEXING and _by_numbers(args[1])):
        raise NotRecordable(f"{func._schema.name} looks at numbers")


def _by_numbers(indices: Any) -> bool:
    """Whether places are given by their numbers: what is taken then has the shape of these."""
    return all(each is None or each.dtype in (torch.int32, torch.int64) for each in indices)


def _is_view(func: Any) -> bool:
    return any(each.alias_info is not None and not each.alias_info.is_write for each in func._schema.returns)


def _writes(func: Any) -> bool:
    return any(each.alias_info is not None and each.alias_info.is_write for each in func._schema.arguments)


def _tensors(func: Any, result: Any) -> tuple[Tensor, ...]:
    leaves = tree_leaves(result)
    if not all(isinstance(each, Tensor) for each in leaves):
        raise NotRecordable(f"{func._schema.name} gives something other than tensors")
    return tuple(leaves)
