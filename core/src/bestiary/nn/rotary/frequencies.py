"""Inverse frequencies of rotary embedding under every scaling, in fp32 on the CPU exactly as transformers has them.

A scaling is a function from `RopeGeometry` and the configuration's `rope_parameters` to `Frequencies`. None of them
looks at a batch: angles depend on constants, on the position and, in one scaling, on the length of the prompt, so that
a token's key never depends on who else is computed with it, nor on how its prompt was cut into chunks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bestiary.api.errors import ConfigError

Parameters = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RopeGeometry:
    """`dim` channels are rotated; the model was configured for `max_position` tokens and meets `length` at most."""

    head_size: int
    dim: int
    max_position: int
    length: int


@dataclass(frozen=True, slots=True)
class Frequencies:
    """Angles per position, and the factor on their cosine and sine.

    `inv_freq` is ``[dim / 2]``, or ``[length, dim / 2]`` where it depends on the position, or ``[sets, 1, dim / 2]``
    where a sequence takes one of several sets by the length of its prompt: set i for up to `longest_prompts[i]` tokens,
    the first that fits.
    """

    inv_freq: Tensor
    attention_factor: float = 1.0
    longest_prompts: tuple[int, ...] = ()


def default(geometry: RopeGeometry, parameters: Parameters) -> Frequencies:
    """``theta ** (-2i / dim)``, each divided by its `freq_factors` entry where a file carries them (GGUF's Llama 3)."""
    inv_freq = _plain(_theta(parameters), geometry.dim)
    if (factors := parameters.get("freq_factors")) is not None:
        inv_freq = inv_freq / _per_channel("freq_factors", factors, geometry.dim)
    return Frequencies(inv_freq)


def linear(geometry: RopeGeometry, parameters: Parameters) -> Frequencies:
    """Positions divided by `factor`."""
    return Frequencies(_plain(_theta(parameters), geometry.dim) / _positive("factor", parameters))


def dynamic_ntk(geometry: RopeGeometry, parameters: Parameters) -> Frequencies:
    """NTK-aware scaling of theta by the length so far.

    Rule: position p is rotated with the theta of a sequence of p + 1 tokens (the plain one up to `max_position`). This
    is what transformers computes when it decodes token by token from a prompt of at most `max_position` tokens; for a
    longer prompt transformers rotates all of it with its last token's theta, which depends on how the prompt is cut.
    `alpha` (Hunyuan), where given, is a constant factor on theta instead.
    """
    theta, dim, exponent = _theta(parameters), geometry.dim, _ntk_exponent(geometry)
    if parameters.get("alpha"):
        return Frequencies(_plain(theta * _positive("alpha", parameters) ** exponent, dim))
    factor, original = _positive("factor", parameters), geometry.max_position
    plain = _plain(theta, dim)
    if geometry.length <= original:
        return Frequencies(plain)
    lengths = torch.arange(original + 1, geometry.length + 1)
    bases = theta * ((factor * lengths / original) - (factor - 1)) ** exponent
    beyond = 1.0 / (bases[:, None] ** _exponents(dim))
    return Frequencies(torch.cat((plain.expand(original, -1), beyond)))


def dynamic_by_prompt(geometry: RopeGeometry, parameters: Parameters) -> Frequencies:
    """The first Qwen's NTK-aware scaling (arXiv 2309.16609): theta by the length of the *prompt*, kept for its answer.

    A prompt of n tokens, s being the original length, takes ``theta * alpha ** (dim / (dim - 2))`` for all positions,
    with ``alpha = max(2 ** ceil(log2(n / s) + 1) - 1, 1)``: 1 up to s tokens, 3 up to 2s, 7 up to 4s, and so on. Here
    each such class of lengths is a set of frequencies, as many of them as prompts of `length` tokens need.
    """
    theta, dim, exponent = _theta(parameters), geometry.dim, _ntk_exponent(geometry)
    longest = [math.ceil(_original(geometry, parameters))]
    while longest[-1] < geometry.length:
        longest.append(2 * longest[-1])
    alphas = [2 ** (index + 1) - 1 for index in range(len(longest))]
    sets = torch.stack([_plain(theta * alpha**exponent, dim) for alpha in alphas])
    return Frequencies(sets[:, None], longest_prompts=tuple(longest))


def llama3(geometry: RopeGeometry, parameters: Parameters) -> Frequencies:
    """Llama 3.1's: long wavelengths divided by `factor`, short ones kept, those between blended."""
    inv_freq = _plain(_theta(parameters), geometry.dim)
    factor = _positive("factor", parameters)
    low, high = _positive("low_freq_factor", parameters), _positive("high_freq_factor", parameters)
    original = _original(geometry, parameters)
    wavelength = 2 * math.pi / inv_freq
    scaled = torch.where(wavelength > original / low, inv_freq / factor, inv_freq)
    smooth = (original / wavelength - low) / (high - low)
    blended = (1 - smooth) * scaled / factor + smooth * scaled
    between = ~(wavelength < original / high) & ~(wavelength > original / low)
    return Frequencies(torch.where(between, blended, scaled))


def yarn(geometry: RopeGeometry, parameters: Parameters) -> Frequencies:
    """YaRN (arXiv 2309.00071): a ramp over channels from kept frequencies to interpolated ones."""
    theta, dim, original = _theta(parameters), geometry.dim, _original(geometry, parameters)
    factor = _optional("factor", parameters, geometry.max_position / original)
    if _optional("extrapolation_factor", parameters, 1.0) != 1.0 or parameters.get("apply_yarn_scaling") is False:
        raise ConfigError(
            "YaRN with an extrapolation factor, or without its scaling, is not supported",
            code="UNSUPPORTED_LAYER",
            field="rope_parameters.extrapolation_factor",
            value=parameters.get("extrapolation_factor"),
            limit="1, and apply_yarn_scaling not false",
        )
    low = _yarn_channel(_optional("beta_fast", parameters, 32), dim, theta, original)
    high = _yarn_channel(_optional("beta_slow", parameters, 1), dim, theta, original)
    if parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    keep = 1 - ramp
    wavelengths = theta ** _exponents(dim)
    inv_freq = (1.0 / (factor * wavelengths)) * (1 - keep) + (1.0 / wavelengths) * keep
    return Frequencies(inv_freq, _yarn_attention_factor(factor, parameters))


def longrope(geometry: RopeGeometry, parameters: Parameters) -> Frequencies:
    """LongRoPE (arXiv 2402.13753): one divisor per channel, a short and a long set.

    Rule: the long set is used, for all positions, exactly if the engine may meet more than the original length
    (`max_model_len`, or the configuration's own length outside an engine). transformers switches when a sequence
    outgrows the original length, which would need all its keys computed anew; run with `max_model_len` up to the
    original length for its results on short sequences.
    """
    original = _original(geometry, parameters)
    name = "long_factor" if geometry.length > original else "short_factor"
    divisors = _per_channel(name, parameters.get(name), geometry.dim)
    inv_freq = 1.0 / (divisors * _theta(parameters) ** _exponents(geometry.dim))
    factor = _optional("factor", parameters, geometry.max_position / original)
    default_factor = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1.0 and original > 1 else 1.0
    scale = _optional(name.replace("_factor", "_mscale"), parameters, default_factor)
    return Frequencies(inv_freq, _optional("attention_factor", parameters, scale))


def proportional(geometry: RopeGeometry, parameters: Parameters) -> Frequencies:
    """Gemma 4's partial rotation: all channels take part, those beyond `partial_rotary_factor` with frequency zero."""
    size = geometry.head_size
    turning = int(_optional("partial_rotary_factor", parameters, 1.0) * size // 2)
    exponents = torch.arange(0, 2 * turning, 2, dtype=torch.int64).float() / size
    inv_freq = torch.cat((1.0 / (_theta(parameters) ** exponents), torch.zeros(size // 2 - turning)))
    return Frequencies(inv_freq / _optional("factor", parameters, 1.0))


SCALINGS: dict[str, Callable[[RopeGeometry, Parameters], Frequencies]] = {
    "default": default,
    "mrope": default,
    "linear": linear,
    "dynamic": dynamic_ntk,
    "dynamic_by_prompt": dynamic_by_prompt,
    "llama3": llama3,
    "yarn": yarn,
    "longrope": longrope,
    "su": longrope,
    "proportional": proportional,
    "factors": default,
}


def frequencies(geometry: RopeGeometry, parameters: Parameters) -> Frequencies:
    """The angles that `parameters` (transformers' `rope_parameters`) ask for; an unknown scaling is a `ConfigError`."""
    kind = str(parameters.get("rope_type") or parameters.get("type") or "default")
    scaling = SCALINGS.get(kind)
    if scaling is None:
        raise ConfigError(
            "unknown rotary scaling",
            code="UNSUPPORTED_LAYER",
            field="rope_parameters.rope_type",
            value=kind,
            limit=f"one of {', '.join(sorted(SCALINGS))}",
        )
    return scaling(geometry, parameters)


def _ntk_exponent(geometry: RopeGeometry) -> float:
    dim = geometry.dim
    if dim <= 2:
        raise ConfigError("too few channels for dynamic scaling", field="rotary_dim", value=dim, limit="at least 4")
    return dim / (dim - 2)


def _exponents(dim: int) -> Tensor:
    return torch.arange(0, dim, 2, dtype=torch.int64).float() / dim


def _plain(theta: float, dim: int) -> Tensor:
    return 1.0 / (theta ** _exponents(dim))


def _theta(parameters: Parameters) -> float:
    theta = float(_optional("rope_theta", parameters, 10000.0))
    if theta <= 1:
        raise ConfigError("no base of wavelengths", field="rope_parameters.rope_theta", value=theta, limit="above 1")
    return theta


def _positive(name: str, parameters: Parameters) -> float:
    value = parameters.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise ConfigError(
            f"rotary scaling needs {name}", field=f"rope_parameters.{name}", value=value, limit="a positive number"
        )
    return value


def _optional(name: str, parameters: Parameters, otherwise: float) -> float:
    return otherwise if not parameters.get(name) else _positive(name, parameters)


def _original(geometry: RopeGeometry, parameters: Parameters) -> float:
    return _optional("original_max_position_embeddings", parameters, geometry.max_position)


def _per_channel(name: str, values: Any, dim: int) -> Tensor:
    fits = isinstance(values, list | tuple) and len(values) == dim // 2
    if not fits or not all(isinstance(value, int | float) and 0 < value < math.inf for value in values):
        raise ConfigError(
            f"rotary scaling needs {name}",
            field=f"rope_parameters.{name}",
            value=values,
            limit=f"{dim // 2} positive numbers",
        )
    return torch.tensor(values, dtype=torch.float32)


def _yarn_channel(rotations: float, dim: int, theta: float, original: float) -> float:
    """The channel that turns `rotations` times over the original length."""
    return (dim * math.log(original / (rotations * 2 * math.pi))) / (2 * math.log(theta))


def _yarn_attention_factor(factor: float, parameters: Parameters) -> float:
    mscale, over_all = _optional("mscale", parameters, 0), _optional("mscale_all_dim", parameters, 0)
    inferred = _mscale(factor, mscale) / _mscale(factor, over_all) if mscale and over_all else _mscale(factor, 1.0)
    return _optional("attention_factor", parameters, inferred * _optional("attn_factor", parameters, 1.0))


def _mscale(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0
