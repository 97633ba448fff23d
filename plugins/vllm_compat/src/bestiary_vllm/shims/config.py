"""Configuration as vLLM's model files know it: core's objects, and helpers around them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any

import torch

from bestiary.api import VllmConfig
from bestiary.api.errors import ConfigError
from bestiary.nn import scope as core
from bestiary_vllm.changeable import changeable
from bestiary_vllm.said import say_once

_DTYPES = {
    "float32": torch.float32, "float": torch.float32, "float16": torch.float16, "half": torch.float16,
    "bfloat16": torch.bfloat16,
}  # fmt: skip
_MISSING = object()


def get_current_vllm_config() -> VllmConfig:
    """The configuration of the model being built, which its file may change. Raises `EngineError` outside."""
    return changeable(core.get_current_vllm_config())


def get_current_vllm_config_or_none() -> VllmConfig | None:
    current = core.get_current_vllm_config_or_none()
    return None if current is None else changeable(current)


class CUDAGraphMode(Enum):
    """How much of a step is recorded; model files compare with it, and nothing here is recorded in pieces."""

    NONE = 0
    PIECEWISE = 1
    FULL = 2


def getattr_iter(
    object: Any,
    names: Iterable[str],
    default: Any = None,
    default_factory: Callable[[], Any] | None = None,
    warn: bool = False,
) -> Any:
    """The first attribute of `names` that `object` has; with `warn`, a line where it is not the first name."""
    for index, name in enumerate(names):
        found = getattr(object, name, _MISSING)
        if found is not _MISSING:
            if warn and index:
                say_once(f"{name!r} is an older name of a configuration's field")
            return found
    return default if default_factory is None else default_factory()


def str_dtype_to_torch_dtype(name: str) -> torch.dtype:
    if name not in _DTYPES:
        raise ConfigError("no such dtype", field="dtype", value=name, limit=", ".join(_DTYPES))
    return _DTYPES[name]


def set_default_rope_theta(config: Any, default_theta: float) -> None:
    """Give a configuration whose rotary parameters state no base the one that its models were trained with.

    A configuration object of transformers fills in 10,000 by itself where its file states none; that value cannot be
    told from one that was meant, and stays.
    """
    parameters = getattr(config, "rope_parameters", None)
    if parameters is None:
        config.rope_parameters = {"rope_type": "default", "rope_theta": default_theta}
    elif "rope_theta" not in parameters:
        parameters["rope_theta"] = default_theta


def is_interleaved(config: Any) -> bool:
    """Whether layers with and without a sliding window alternate."""
    kinds = getattr(config, "layer_types", None)
    return kinds is not None and len(set(kinds)) > 1
