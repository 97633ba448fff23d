"""The angles that all layers of a step rotate by, in one launch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from .sizes import power_of_2
from .variants import Variant


@triton.jit  # type: ignore[untyped-decorator]
def _angles(  # type: ignore[no-untyped-def]
    table, positions, cos, sin, width, NEOX: tl.constexpr, HALF: tl.constexpr
):  # fmt: skip
    """One token's row of a table: the cosine of each pair for both channels, its sine negative for the first."""
    token = tl.program_id(0).to(tl.int64)
    pair = tl.arange(0, HALF)
    half = width // 2
    inside = pair < half
    row = table + tl.load(positions + token) * width
    c = tl.load(row + pair, mask=inside, other=0.0).to(tl.float32)
    s = tl.load(row + half + pair, mask=inside, other=0.0).to(tl.float32)
    first = token * width + (pair if NEOX else 2 * pair)
    second = first + (half if NEOX else 1)
    kind = cos.dtype.element_ty
    tl.store(cos + first, c.to(kind), mask=inside)
    tl.store(cos + second, c.to(kind), mask=inside)
    tl.store(sin + first, (-s).to(kind), mask=inside)
    tl.store(sin + second, s.to(kind), mask=inside)


def rotary_angles(table: Tensor, positions: Tensor, is_neox_style: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """As `bestiary.nn.ops.rotary.rotary_angles`."""
    table, positions = table.contiguous(), positions.contiguous()
    width = table.shape[1]
    cos, sin = (torch.empty(len(positions), 1, width, dtype=dtype, device=table.device) for _ in range(2))
    if len(positions):
        _angles[(len(positions),)](
            table, positions, cos, sin, width, NEOX=is_neox_style,
            HALF=power_of_2(width // 2), num_warps=1,
        )  # fmt: skip
    return cos, sin


def variants() -> Iterator[Variant]:
    for angles in ("*bf16", "*fp16", "*fp32"):
        signature = {"table": "*fp32", "positions": "*i64", "cos": angles, "sin": angles}
        signature["width"] = "i32"
        yield Variant(_angles, signature, {"NEOX": True, "HALF": 64}, 1, divisible=("width",))
