"""Random weights that depend on nothing but their names: the same in every process, order, shard and dtype."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch

STANDARD_DEVIATION = 0.02
_BLOCK = 1_048_573
"""A prime, so that a repeated block starts at another place in every row of a power-of-two width."""


def dummy_value(name: str, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """The whole tensor called `name`: normal with standard deviation 0.02, and ones for norms (1-D weights).

    Drawn in fp32 and rounded to `dtype`; tensors above a million elements repeat a block, at memory speed. Integer
    tensors are zeros.
    """
    if not dtype.is_floating_point:
        return torch.zeros(*shape, dtype=dtype)
    if len(shape) == 1 and name.endswith("weight"):
        return torch.ones(*shape).to(dtype)
    count = math.prod(shape)
    generator = torch.Generator().manual_seed(_seed(name))
    block = torch.randn(min(count, _BLOCK), generator=generator).mul_(STANDARD_DEVIATION).to(dtype)
    if count > _BLOCK:
        block = block.repeat(-(-count // _BLOCK))[:count]
    return block.view(*shape)


def _seed(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") >> 1
