"""`get_rope` of every age, and `MRotaryEmbedding`'s name."""

from __future__ import annotations

from typing import Any

from bestiary.nn import RotaryEmbedding
from bestiary.nn import get_rope as core_get_rope
from bestiary_vllm.hf_config import ByKind
from bestiary_vllm.said import old_keyword

_GLOBAL = "full_attention"
_PARAMETERS = "rope_parameters={…} holds it now"
_ORDER = ("rotary_dim", "max_position", "base", "is_neox_style", "rope_scaling", "dtype", "partial_rotary_factor")
"""What followed `head_size` without a name until 0.13."""


def get_rope(head_size: int, *positional: Any, **options: Any) -> RotaryEmbedding:
    """Core's, with the arguments of vLLM before 0.14: ``get_rope(head_size, rotary_dim, max_position, base, …)``."""
    old = _was_old(positional, options)
    order = _ORDER if old else ("max_position", "is_neox_style", "rope_parameters", "dtype")
    options.update(zip(order, positional, strict=False))
    parameters = options.get("rope_parameters")
    if isinstance(parameters, ByKind):
        parameters = options["rope_parameters"] = parameters[_GLOBAL]
    if parameters is not None and str(parameters.get("rope_type", "")).startswith("deepseek_"):
        options["rope_parameters"] = {**parameters, "rope_type": "yarn"}  # whose factors core reads from the parameters
    for name in ("rotary_dim", "base", "rope_scaling", "partial_rotary_factor"):
        if options.get(name) is not None:
            old_keyword("get_rope", name, _PARAMETERS)
    return core_get_rope(head_size, **options)


def _was_old(positional: tuple[Any, ...], options: dict[str, Any]) -> bool:
    """Whether the second argument is `rotary_dim`: then a length is the third, or has its name."""
    if not positional:
        return False
    second_is_length = len(positional) > 1 and not isinstance(positional[1], bool)
    return second_is_length or "max_position" in options
