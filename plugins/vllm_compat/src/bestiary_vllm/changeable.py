"""Configuration that a model file may change while it builds a model. Core's own stays as it is."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, TypeVar, cast

from bestiary.api.config import ModelConfig

from .hf_config import as_read_by_files

T = TypeVar("T")


class _Changeable:
    """Marks copies, and lets their fields be set."""

    __setattr__ = object.__setattr__
    __delattr__ = object.__delattr__


def changeable(config: T) -> T:
    """A copy of a frozen dataclass, and of those among its fields, that can be changed; one that can is itself.

    The same object has one copy.
    """
    if isinstance(config, _Changeable):
        return config
    if _COPY not in vars(config):
        copy: Any = object.__new__(_class_of(cast(Hashable, type(config))))
        for field in fields(config):  # type: ignore[arg-type]
            value = getattr(config, field.name)
            copy.__dict__[field.name] = changeable(value) if _is_frozen(value) else value
        if isinstance(config, ModelConfig):
            copy.hf_config, copy.hf_text_config = as_read_by_files(config.hf_config, config.hf_text_config)
        vars(config)[_COPY] = copy
    made: T = vars(config)[_COPY]
    return made


_COPY = "_changeable_copy"


def _is_frozen(value: Any) -> bool:
    parameters = getattr(type(value), "__dataclass_params__", None) if is_dataclass(value) else None
    return parameters is not None and bool(parameters.frozen) and hasattr(value, "__dict__")


@cache
def _class_of(frozen: Hashable) -> Any:
    base: Any = frozen
    return type(base.__name__, (_Changeable, base), {"__module__": base.__module__})
