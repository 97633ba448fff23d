"""Activation layers, and the tables from a configuration's `hidden_act` to one of them.

Those called ``…AndMul`` take the gate and up projections side by side: ``[…, 2 d]`` in, ``[…, d]`` out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from statistics import NormalDist

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bestiary.api.errors import ConfigError

from .ops.activation import gelu, gelu_and_mul, quick_gelu, relu2, silu_and_mul, xielu


class Activation(nn.Module):
    """An elementwise function as a layer, known by its name in a configuration."""

    def __init__(self, name: str, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.name = name
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)

    def extra_repr(self) -> str:
        return self.name


class ActAndMul(nn.Module):
    """``function(gate) * up`` for a function that has no layer of its own."""

    def __init__(self, function: Callable[[Tensor], Tensor], name: str) -> None:
        super().__init__()
        self.name = name
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        gate, up = x.chunk(2, -1)
        return self.function(gate) * up

    def extra_repr(self) -> str:
        return self.name


class SiluAndMul(nn.Module):
    """``silu(gate) * up``."""

    def forward(self, x: Tensor) -> Tensor:
        return silu_and_mul(x)


class MulAndSilu(nn.Module):
    """``up * silu(gate)`` for checkpoints that store the up projection first."""

    def forward(self, x: Tensor) -> Tensor:
        up, gate = x.chunk(2, -1)
        return F.silu(gate).mul_(up)


class GeluAndMul(nn.Module):
    """``gelu(gate) * up``. `approximate`: "none" (erf) or "tanh"."""

    def __init__(self, approximate: str = "none") -> None:
        super().__init__()
        if approximate not in ("none", "tanh"):
            raise ConfigError(
                "unknown approximation of GELU", field="approximate", value=approximate, limit="none, tanh"
            )
        self.approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        return gelu_and_mul(x, self.approximate)


class GeluAndMulSparse(nn.Module):
    """Gemma 3n's: of each row's gates only those in the top ``1 - activation_sparsity`` of a fitted normal survive."""

    def __init__(self, activation_sparsity: float, approximate: str = "none") -> None:
        super().__init__()
        if not 0.0 < activation_sparsity < 1.0:
            raise ConfigError(
                "not a share of gates", field="activation_sparsity", value=activation_sparsity, limit="between 0 and 1"
            )
        self.approximate = approximate
        self.deviations = NormalDist().inv_cdf(activation_sparsity)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = x.chunk(2, -1)
        cutoff = gate.mean(-1, keepdim=True) + gate.std(-1, keepdim=True, unbiased=False) * self.deviations
        return gelu(F.relu(gate - cutoff), self.approximate) * up


class SiluAndMulWithClamp(nn.Module):
    """``silu(min(gate, limit)) * clamp(up, ±limit)``."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, x: Tensor) -> Tensor:
        gate, up = x.chunk(2, -1)
        return F.silu(gate.clamp_max(self.limit)).mul_(up.clamp(-self.limit, self.limit))


class SwigluStepAndMul(nn.Module):
    """``min(silu(gate), limit) * clamp(up, ±limit)`` (Step 3.5)."""

    def __init__(self, limit: float = 7.0) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, x: Tensor) -> Tensor:
        gate, up = x.chunk(2, -1)
        return F.silu(gate).clamp_max_(self.limit).mul_(up.clamp(-self.limit, self.limit))


class SwigluOAIAndMul(nn.Module):
    """gpt-oss's: gates and ups interleaved, clamped, ``gate * sigmoid(alpha * gate) * (up + 1)``."""

    def __init__(self, alpha: float = 1.702, limit: float = 7.0) -> None:
        super().__init__()
        self.alpha = alpha
        self.limit = limit

    def forward(self, x: Tensor) -> Tensor:
        gate = x[..., ::2].clamp_max(self.limit)
        up = x[..., 1::2].clamp(-self.limit, self.limit)
        return (up + 1) * (gate * torch.sigmoid(gate * self.alpha))


class FatreluAndMul(nn.Module):
    """``gate * up`` where the gate exceeds `threshold`, otherwise 0 (arXiv 2402.13516)."""

    def __init__(self, threshold: float = 0.0) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, x: Tensor) -> Tensor:
        gate, up = x.chunk(2, -1)
        return F.threshold(gate, self.threshold, 0.0) * up


class XIELU(nn.Module):
    """xIELU with its two learned scalars; `beta` and `eps` are buffers, which checkpoints hold as well."""

    beta: Tensor
    eps: Tensor

    def __init__(self, beta: float = 0.5, eps: float = -1e-6, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.alpha_p = nn.Parameter(torch.empty(1, dtype=dtype, device="meta"), requires_grad=False)
        self.alpha_n = nn.Parameter(torch.empty(1, dtype=dtype, device="meta"), requires_grad=False)
        self.register_buffer("beta", torch.tensor(beta, dtype=dtype))
        self.register_buffer("eps", torch.tensor(eps, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return xielu(x, self.alpha_p, self.alpha_n, self.beta, self.eps)


_gelu_tanh = partial(gelu, approximate="tanh")

_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": gelu,
    "gelu_python": gelu,
    "gelu_new": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "gelu_tanh": _gelu_tanh,
    "gelu_accurate": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "gelu_python_tanh": _gelu_tanh,
    "hardswish": F.hardswish,
    "leaky_relu": F.leaky_relu,
    "linear": lambda x: x,
    "mish": F.mish,
    "quick_gelu": quick_gelu,
    "relu": F.relu,
    "relu2": relu2,
    "relu6": F.relu6,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "swish": F.silu,
    "sqrtsoftplus": lambda x: F.softplus(x).sqrt(),
    "tanh": torch.tanh,
}

_GATED: dict[str, Callable[[], nn.Module]] = {
    "gelu": GeluAndMul,
    "geglu": GeluAndMul,
    "gelu_new": partial(GeluAndMul, approximate="tanh"),
    "gelu_fast": partial(GeluAndMul, approximate="tanh"),
    "gelu_tanh": partial(GeluAndMul, approximate="tanh"),
    "gelu_pytorch_tanh": partial(GeluAndMul, approximate="tanh"),
    "silu": SiluAndMul,
    "swish": SiluAndMul,
    "swigluoai": SwigluOAIAndMul,
}


def get_act_fn(act_fn_name: str) -> nn.Module:
    """The activation that a configuration calls `act_fn_name`; an unknown one is a `ConfigError`."""
    name = act_fn_name.lower()
    if name == "xielu":
        return XIELU()
    if name not in _FUNCTIONS:
        raise _unknown(act_fn_name, [*_FUNCTIONS, "xielu"])
    return Activation(name, _FUNCTIONS[name])


def get_act_and_mul_fn(act_fn_name: str) -> nn.Module:
    """The gated activation that a configuration calls `act_fn_name`; an unknown one is a `ConfigError`."""
    name = act_fn_name.lower()
    if name in _GATED:
        return _GATED[name]()
    if name in _FUNCTIONS:
        return ActAndMul(_FUNCTIONS[name], name)
    raise _unknown(act_fn_name, [*_GATED, *_FUNCTIONS])


def _unknown(name: str, known: Iterable[str]) -> ConfigError:
    return ConfigError(
        "unknown activation function",
        code="UNSUPPORTED_LAYER",
        field="hidden_act",
        value=name,
        limit=f"one of {', '.join(sorted(known))}",
    )
