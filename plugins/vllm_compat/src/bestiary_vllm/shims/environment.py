"""`vllm.envs`: every variable is what vLLM takes it to be where nobody has set it; none of them is read here."""

from __future__ import annotations

_SET = {
    "VLLM_LOGGING_LEVEL": "INFO",
    "VLLM_USE_V1": True,
}


def is_set(name: str) -> bool:
    """Whether somebody has set a variable: nothing here looks."""
    return False


def __getattr__(name: str) -> object:
    if name in _SET:
        return _SET[name]
    if name.startswith("VLLM_"):
        return False
    raise AttributeError(f"vllm.envs has no {name!r}", name=name)
