"""Small functions of `vllm.utils`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from packaging.version import parse


def cdiv(a: int, b: int) -> int:
    """``a / b``, rounded up."""
    return -(-a // b)


def round_up(x: int, multiple: int) -> int:
    return cdiv(x, multiple) * multiple


def is_torch_equal_or_newer(target: str) -> bool:
    return parse(torch.__version__) >= parse(target)


@contextmanager
def set_default_torch_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def direct_register_custom_op(
    op_name: str, op_func: Callable[..., Any], mutates_args: list[str] | None = None, **options: Any
) -> None:
    """Make ``torch.ops.vllm.<op_name>`` call `op_func`. Nothing traces models here, so no schema is needed of it."""
    setattr(torch.ops.vllm, op_name, op_func)


def encode_layer_name(layer_name: str) -> str:
    return layer_name


LayerNameType = str
OCP_MX_BLOCK_SIZE = 32


class GroupShape(NamedTuple):
    """How many rows and columns share a scale; −1 is all of them."""

    row: int
    col: int


def get_quark_ocp_mx_group_size(quant_config: object, prefix: str = "") -> None:
    """The size of groups that share a scale in one of Quark's microscaling formats: there is none, as none is read."""
