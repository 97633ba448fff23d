"""`vllm._custom_ops`: kernels that vLLM compiles. None is here; files ask for them on paths that are not taken."""

from __future__ import annotations

from bestiary_vllm.absent import absent


def __getattr__(name: str) -> type:
    if name.startswith("__"):
        raise AttributeError(name)
    return absent(f"vllm._custom_ops:{name}", "vLLM's compiled kernels are not part of it")
