"""`vllm._custom_ops`: kernels that vLLM compiles. Two are here; others are asked for on paths that are not taken."""

from __future__ import annotations

import torch

from bestiary.nn.ops.norm import rms_norm as core_rms_norm
from bestiary_vllm.absent import absent


def rms_norm(out: torch.Tensor, input: torch.Tensor, weight: torch.Tensor | None, epsilon: float) -> None:
    """The root mean square norm of `input`, over its last dimension, written to `out`."""
    out.copy_(core_rms_norm(input, weight, epsilon))


def moe_sum(input: torch.Tensor, output: torch.Tensor) -> None:
    """``[tokens, k, out]`` summed over `k` into `output`."""
    torch.sum(input, 1, out=output)


def __getattr__(name: str) -> type:
    if name.startswith("__"):
        raise AttributeError(name)
    return absent(f"vllm._custom_ops:{name}", "vLLM's compiled kernels are not part of it")
