"""Tensors that say they are on a GPU, and lie in the host's memory; and what happens when an op gets them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch._dynamo  # looks at `_make_subclass` when it is imported, so before `make_subclass` is in its place
from queue_of_work import WORK, forget, where
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("cuda", 0)
CPU = torch.device("cpu")
WAITING = {
    f"aten::{name}"
    for name in (
        "_local_scalar_dense", "bincount", "equal", "is_nonzero", "masked_select", "nonzero", "repeat_interleave",
        "unique_consecutive", "unique_dim", "_unique2",
    )
}  # fmt: skip
"""Ops whose result, or its shape, the host has to know."""
INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
UNWRITTEN = {"aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty", "aten::new_empty_strided"}
_pinned: dict[int, Tensor] = {}
"""By address; never freed, so that no other memory comes to lie there."""


class OnDevice(Tensor):
    """A tensor of the device. It is no view of another one as far as torch knows; what it holds is.

    Attributes:
        held: the same tensor, as the host has it.
    """

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls: Any, held: Tensor) -> OnDevice:
        with torch.inference_mode(False):  # else it could be no view of a tensor that was made outside
            made: OnDevice = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
                cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
                layout=held.layout, device=DEVICE,
            )  # fmt: skip
        made.held = held
        return made

    def __init__(self, held: Tensor) -> None:
        pass

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnDevice({self.held!r})"

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def untyped_storage(self) -> Any:
        return self.held.untyped_storage()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *args: Any, **options: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy: it is not the host's")

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(func, args, kwargs or {})


class Pretended(TorchDispatchMode):
    """Where it is active, tensors can be made on `DEVICE`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(func, args, kwargs or {})


_make_subclass = torch.Tensor._make_subclass
_both: dict[type, type] = {}


def make_subclass(cls: type, data: Tensor, require_grad: bool = False) -> Tensor:
    """`torch.Tensor._make_subclass`: of a tensor of the device, one of both classes."""
    if not isinstance(data, OnDevice):
        return _make_subclass(cls, data, require_grad)
    return OnDevice.__new__(_both.setdefault(cls, type(cls.__name__, (cls, OnDevice), {})), data.held)


def held(value: Any) -> Any:
    """What the host has in place of it."""
    if isinstance(value, OnDevice):
        return value.held
    return CPU if isinstance(value, torch.device) and value.type == "cuda" else value


def _call(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    name = func._schema.name
    if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
        with Pretended():
            return func.decompose(*args, **kwargs)
    if name == "aten::is_pinned":
        return where(args[0]) in _pinned
    if name == "aten::_pin_memory":
        return _pin(args[0].clone())
    if name == "aten::copy_":
        return _copy(*args, **kwargs)
    there = kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cuda"
    if name == "aten::_to_copy" and kwargs.get("device") is not None and there is not isinstance(args[0], OnDevice):
        return _brought(args[0], there, kwargs)
    return _compute(func, name, args, kwargs, there)


def _compute(func: Any, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], there: bool) -> Any:
    """An op on one device."""
    leaves = tree_leaves((args, kwargs))
    ours = [each for each in leaves if isinstance(each, OnDevice)]
    if ours:
        _check(name, args, leaves)
    positional, named = tree_map(held, args), {key: tree_map(held, value) for key, value in kwargs.items()}
    pinned, graph = named.pop("pin_memory", False), WORK.graph
    here = there or (bool(ours) and kwargs.get("device") is None)
    if here and graph is not None and func._schema.is_mutable:
        for each in ours:
            graph.may_write(each.held)
    made = func(*positional, **named)
    if not here:
        return _pin(made) if pinned else made
    known = {id(each.held): each for each in ours}
    given = {where(each.held) for each in ours}
    fresh = [each for each in tree_leaves(made) if isinstance(each, Tensor) and where(each) not in given]
    if name in UNWRITTEN:
        for each in fresh:
            forget(each)
    if graph is not None:
        for each in fresh:
            graph.makes(each)
        if name not in UNWRITTEN and (fresh or func._schema.is_mutable):
            graph.steps.append(lambda: _again(made, func(*positional, **named), given))
    return tree_map(lambda each: _wrapped(each, known), made)


def _check(name: str, args: tuple[Any, ...], leaves: list[Any]) -> None:
    """What an op gets is on one device, but for indices; and the host need not know what comes of it."""
    if any(isinstance(each, Tensor) and not isinstance(each, OnDevice) and each.dim() for each in leaves):
        if name not in INDEXING:
            raise RuntimeError(f"Expected all tensors to be on the same device: {name} got some of the host's")
        WORK.wait("an index of the host's")
    masks = name in INDEXING and any(
        isinstance(each, Tensor) and each.dtype in (torch.bool, torch.uint8) for each in tree_leaves(args[1])
    )
    if name in WAITING or masks:
        WORK.wait(name)


def _wrapped(value: Any, known: Mapping[int, OnDevice]) -> Any:
    if not isinstance(value, Tensor):
        return value
    return known[id(value)] if id(value) in known else OnDevice(value)


def _again(made: Any, found: Any, given: set[int]) -> None:
    """Put what a step found into the tensors that it made when it was captured."""
    for old, new in zip(tree_leaves(made), tree_leaves(found), strict=True):
        if isinstance(old, Tensor) and where(old) not in given:
            old.copy_(new)


def _pin(tensor: Tensor) -> Tensor:
    _pinned[where(tensor)] = tensor
    return tensor


def _copy(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """`copy_`, within a device, to it, or from it."""
    to, off, graph = isinstance(target, OnDevice), isinstance(source, OnDevice), WORK.graph
    if off and not to:
        if non_blocking and where(target) in _pinned and graph is None:
            WORK.arrives(target, held(source).to(target.dtype).expand_as(target))
            return target
        WORK.wait("a copy to the host")
    if to and not off:
        if non_blocking and where(source) in _pinned:
            WORK.leaves(source)
        else:
            WORK.wait("a copy from the host's pages")
    if to and graph is not None:
        graph.may_write(held(target))
        graph.steps.append(lambda: held(target).copy_(held(source)))
    held(target).copy_(held(source))
    return target


def _brought(source: Tensor, there: bool, options: Mapping[str, Any]) -> Tensor:
    """`_to_copy` to the device, or from it."""
    wanted = {name: options[name] for name in ("dtype", "memory_format") if options.get(name) is not None}
    non_blocking = bool(options.get("non_blocking"))
    made = torch.empty_like(held(source), **wanted)
    if there:
        if WORK.graph is not None:
            WORK.graph.makes(made)
        return _copy(OnDevice(made), source, non_blocking)
    return _copy(_pin(made) if non_blocking else made, source, non_blocking)
