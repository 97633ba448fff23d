"""What `FusedMoE` is asked for: looked at before it is built."""

from __future__ import annotations

from typing import Any

from bestiary.api.errors import ConfigError
from bestiary.nn.ops.moe import ACTIVATIONS, SCORES, UNGATED, Activation
from bestiary.nn.scope import get_current_vllm_config_or_none


def spare_copies(wanted: int | None, ep: Any) -> int:
    """Spare copies: only expert parallelism has any."""
    scope = get_current_vllm_config_or_none()
    if wanted is None and scope is not None:
        wanted = scope.parallel_config.eplb_config.num_redundant_experts
    return 0 if ep.world_size == 1 else wanted or 0


def refuse_unknown(extra: dict[str, Any]) -> None:
    """Refuse keywords that ask for what this layer does not do; None, False and an empty string ask for nothing."""
    asked = [name for name, value in extra.items() if value not in (None, False, "")]
    if asked:
        raise ConfigError(
            f"unsupported layer: FusedMoE with {', '.join(asked)}",
            code="UNSUPPORTED_LAYER", field=asked[0], value=extra[asked[0]],
        )  # fmt: skip


def check(num_experts: int, top_k: int, activation: str | Activation, scoring_func: str) -> None:
    if not 0 < top_k <= num_experts:
        raise ConfigError(
            "a token cannot have so many experts", field="top_k", value=top_k, limit=f"1 to {num_experts}"
        )
    for field, value, known in (
        ("activation", activation, (*ACTIVATIONS, *UNGATED)),
        ("scoring_func", scoring_func, tuple(SCORES)),
    ):
        if isinstance(value, str) and value not in known:
            raise ConfigError(f"unknown {field}", field=field, value=value, limit=f"one of {', '.join(known)}")
