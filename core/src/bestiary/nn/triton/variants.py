"""`Variant`: one way in which a kernel is launched, so that it can be compiled where there is no GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ROUNDED = {"enable_fp_fusion": False}
"""How a kernel is launched whose products are rounded before they are added, as the source has it. Otherwise both are
one instruction, rounded once, in bf16 and fp16 too."""


@dataclass(frozen=True, slots=True)
class Variant:
    """A kernel with all that its machine code depends on.

    Attributes:
        kernel: what `triton.jit` made.
        signature: each parameter's type as Triton writes it (``"*bf16"``, ``"i32"``, ``"fp32"``), in order; constants
            may be left out.
        constants: values of the parameters that are `tl.constexpr`, and None for pointers that are not given.
        num_warps, num_stages: of the launch. since, before: compute capabilities, as 80, that it is launched on: from
            the one on, below the other.
        options: other compile options of the launch. divisible: numbers that are multiples of 16, as strides are; so
            are all addresses.
    """

    kernel: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any] = field(default_factory=dict)
    num_warps: int = 4
    num_stages: int = 3
    since: int = 80
    before: int = 1000
    options: Mapping[str, Any] = field(default_factory=dict)
    divisible: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """For people: the kernel, and what distinguishes this variant."""
        types = ",".join(dict.fromkeys(each for each in self.signature.values() if each.startswith("*")))
        given = ",".join(f"{name}={value}" for name, value in self.constants.items())
        return f"{self.kernel.__name__}[{types}|{given}|{self.num_warps}w{self.num_stages}s]"
