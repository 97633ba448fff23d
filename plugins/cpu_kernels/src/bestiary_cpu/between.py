"""What lies between products: norms, activations, rotation."""

from __future__ import annotations

import torch
from torch import Tensor

from bestiary.nn.ops import norm as torch_norm
from bestiary.nn.ops import rotary as torch_rotary

from ._abi import (
    GELU,
    GELU_TANH,
    QUICK_GELU,
    RELU2,
    SILU,
    ActivationArgs,
    AnglesArgs,
    ArgmaxArgs,
    NormArgs,
    RopeArgs,
)
from .pool import Call
from .runtime import Rows, pointer, runtime


def _plain(*parameters: Tensor | None) -> bool:
    """Whether parameters are what the kernels read: fp32, one after another."""
    return all(each is None or (each.dtype is torch.float32 and each.is_contiguous()) for each in parameters)


def _norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    center: bool = False,
    offset: float = 0.0,
    residual: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The normalised rows, and with a residual the sums."""
    here, n = runtime(), x.shape[-1]
    heads = x.dim() == 3 and x.stride(2) == 1 and residual is None
    rows = None if heads else Rows(x)
    source = x if rows is None else rows.tensor
    strides = (x.stride(1), x.shape[1], x.stride(0)) if rows is None else (rows.stride, 0, 0)
    beside = None if residual is None else Rows(residual)
    count = x.numel() // n
    out = here.empty(count, n)
    sums = None if residual is None else here.empty(count, n)
    args = NormArgs(
        source.data_ptr(), *strides, None if beside is None else beside.address, 0 if beside is None else beside.stride,
        pointer(sums), n, pointer(weight), pointer(bias), offset, eps, center, count, n, out.data_ptr(), n,
    )  # fmt: skip
    kept = (source, weight, bias, None if beside is None else beside.tensor)
    here.run(Call("bst_norm", args), keep=kept)
    return out.view(x.shape), None if sums is None else sums.view(x.shape)


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    if not _plain(weight):
        return torch_norm.rms_norm.reference(x, weight, eps)
    return _norm(x, weight, None, eps)[0]


def fused_add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    if not _plain(weight):
        return torch_norm.fused_add_rms_norm.reference(x, residual, weight, eps)
    normed, sums = _norm(x, weight, None, eps, residual=residual)
    return normed, x if sums is None else sums


def gemma_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    if not _plain(weight):
        return torch_norm.gemma_rms_norm.reference(x, weight, eps)
    return _norm(x, weight, None, eps, offset=1.0)[0]


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    if not _plain(weight, bias):
        return torch_norm.layer_norm.reference(x, weight, bias, eps)
    return _norm(x, weight, bias, eps, center=True)[0]


def _activation(x: Tensor, function: int, gated: bool) -> Tensor:
    here, rows = runtime(), Rows(x)
    width = rows.n // 2 if gated else rows.n
    out = here.empty(rows.count, width)
    args = ActivationArgs(function, gated, rows.address, rows.stride, rows.count, width, out.data_ptr(), width)
    here.run(Call("bst_activation", args), keep=(rows.tensor,))
    return out.view(*x.shape[:-1], width)


def silu_and_mul(x: Tensor) -> Tensor:
    return _activation(x, SILU, True)


def _gelu(approximate: str) -> int:
    return GELU_TANH if approximate == "tanh" else GELU


def gelu_and_mul(x: Tensor, approximate: str = "none") -> Tensor:
    return _activation(x, _gelu(approximate), True)


def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    return _activation(x, _gelu(approximate), False)


def quick_gelu(x: Tensor) -> Tensor:
    return _activation(x, QUICK_GELU, False)


def relu2(x: Tensor) -> Tensor:
    return _activation(x, RELU2, False)


def rotary_angles(table: Tensor, positions: Tensor, is_neox_style: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    if dtype is not torch.float32 or not _plain(table):
        return torch_rotary.rotary_angles.reference(table, positions, is_neox_style, dtype)
    here, count, width = runtime(), len(positions), table.shape[1]
    positions = positions.contiguous()
    cos, sin = here.empty(count, 1, width), here.empty(count, 1, width)
    args = AnglesArgs(
        table.data_ptr(), positions.data_ptr(), count, width, is_neox_style, cos.data_ptr(), sin.data_ptr()
    )
    here.run(Call("bst_angles", args), keep=(table, positions))
    return cos, sin


def best_tokens(logits: Tensor) -> tuple[Tensor, Tensor]:
    here, rows = runtime(), Rows(logits)
    peaks, ids = here.empty(rows.count), here.integers(rows.count)
    args = ArgmaxArgs(rows.address, rows.stride, rows.count, rows.n, ids.data_ptr(), peaks.data_ptr())
    here.run(Call("bst_argmax", args), keep=(rows.tensor,))
    return peaks, ids


def rotary_embedding(
    query: Tensor, key: Tensor | None, cos: Tensor, sin: Tensor, head_size: int, is_neox_style: bool
) -> tuple[Tensor, Tensor | None]:
    """As the op. Angles in another dtype than the query's are taken as fp32, which all of them fit into."""
    here, q = runtime(), Rows(query.flatten(1))
    k = None if key is None else Rows(key.flatten(1))
    turns = [each.reshape(len(each), -1).float().contiguous() for each in (cos, sin)]
    width = turns[0].shape[-1]
    turned = here.empty(q.count, q.n)
    turned_key = None if k is None else here.empty(k.count, k.n)
    args = RopeArgs(
        query=q.address, query_stride=q.stride, query_out=turned.data_ptr(), query_out_stride=q.n,
        cos=turns[0].data_ptr(), sin=turns[1].data_ptr(), angle_stride=width, rows=q.count, heads=q.n // head_size,
        head_size=head_size, rotary_dim=width, neox=is_neox_style,
    )  # fmt: skip
    if k is not None:
        args.key, args.key_stride, args.kv_heads = k.address, k.stride, k.n // head_size
        args.key_out, args.key_out_stride = pointer(turned_key), k.n
    here.run(Call("bst_rope", args), keep=(q.tensor, None if k is None else k.tensor, *turns))
    return turned.view(query.shape), turned_key if key is None or turned_key is None else turned_key.view(key.shape)
