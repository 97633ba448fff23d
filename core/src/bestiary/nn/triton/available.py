"""Where Triton kernels run: on CUDA; or on a CPU, slowly, where Triton's interpreter was asked for to test them."""

from __future__ import annotations

import importlib.util
import os
from functools import cache

import torch

from bestiary.nn.ops.registry import Target


def interpreted() -> bool:
    """Whether kernels are run by Triton's interpreter, as its variable TRITON_INTERPRET says."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@cache
def installed() -> bool:
    """Whether Triton can be imported; it is not, here."""
    return importlib.util.find_spec("triton") is not None


def why_not(target: Target) -> str | None:
    """None where Triton kernels run on `target`, otherwise the reason in a few words."""
    return why_not_device(target.device)


def why_not_device(device: str) -> str | None:
    """The same of a device's type."""
    if device != "cuda" and not (device == "cpu" and interpreted()):
        return "for CUDA"
    return None if installed() else "Triton is not installed: pip install triton"


@cache
def capability_of(device: torch.device) -> int:
    """A GPU's compute capability, 9.0 as 90; of what is none, the least that kernels are written for."""
    if device.type != "cuda":
        return 80
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def has_much_shared_memory(device: torch.device) -> bool:
    """Whether a block may have 160 KiB: on A100, Hopper, and Blackwell for servers; others have 99 KiB."""
    return capability_of(device) in (80, 90, 100, 103)


def why_not_fp8(device: str, dtype: torch.dtype | None) -> str | None:
    """Why numbers of `dtype` cannot be converted on a device: NVIDIA's GPUs know fp8 from capability 8.9 on."""
    if device != "cuda" or dtype is not torch.float8_e4m3fn or torch.cuda.get_device_capability() >= (8, 9):
        return None
    return "fp8 (e4m3) is for GPUs of compute capability 8.9 and above"
