"""The build scope: what is ambient while a model class is being constructed.

Inside it, layers find the `VllmConfig` (tensor-parallel size, dtype, quantization …) without being handed it, every
parameter is created on the meta device, so that building costs no memory, and the default dtype is the model's.
Buffers stay real: they are small and computed by their layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from bestiary.api.errors import EngineError

if TYPE_CHECKING:
    from bestiary.api.config import VllmConfig

_current: VllmConfig | None = None


def get_current_vllm_config() -> VllmConfig:
    """The configuration of the model being built. Raises `EngineError` outside a build scope."""
    if _current is None:
        raise EngineError(
            "no model is being built: layers of bestiary.nn are made inside build_scope(vllm_config)",
            fix="with bestiary.nn.build_scope(vllm_config): model = YourModel(vllm_config=vllm_config)",
        )
    return _current


def get_current_vllm_config_or_none() -> VllmConfig | None:
    return _current


_TWIN = "_on_meta"


@contextmanager
def build_scope(vllm_config: VllmConfig) -> Iterator[None]:
    """Enter the scope; refuses nesting. Holds for the current process, not per thread."""
    global _current
    if _current is not None:
        raise EngineError("a model is already being built; build scopes do not nest")
    default = torch.get_default_dtype()
    hook = register_module_parameter_registration_hook(cast(Callable[..., None], _to_meta))
    _current = vllm_config
    torch.set_default_dtype(vllm_config.model_config.dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(default)
        _current = None
        hook.remove()


def _to_meta(module: nn.Module, name: str, param: nn.Parameter | None) -> nn.Parameter | None:
    """One meta parameter for each real one, however many modules share it."""
    if param is None or param.is_meta:
        return param
    made: nn.Parameter | None = param.__dict__.get(_TWIN)
    if made is None:
        made = nn.Parameter(param.to("meta"), requires_grad=False)
        made.__dict__.update(param.__dict__)
        param.__dict__[_TWIN] = made
    return made
