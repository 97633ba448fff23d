"""What marks parts of a model for torch.compile: nothing is compiled here, so the marks change nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, overload

C = TypeVar("C", bound=type)
F = TypeVar("F", bound=Callable[..., Any])


@overload
def support_torch_compile(cls: C) -> C: ...
@overload
def support_torch_compile(cls: None = None, **options: Any) -> Callable[[C], C]: ...
def support_torch_compile(cls: C | None = None, **options: Any) -> C | Callable[[C], C]:
    """With or without options (`dynamic_arg_dims`, `enable_if` …): the class as it is."""
    return cls if cls is not None else lambda decorated: decorated


def ignore_torch_compile(cls: C) -> C:
    return cls


@contextmanager
def set_model_tag(tag: str, **options: Any) -> Iterator[None]:
    """A name for what is compiled inside: nothing is."""
    yield
