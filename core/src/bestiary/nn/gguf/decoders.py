"""Decoders of the block formats with linear quants: Qn_0, Qn_1, Qn_K, ternary and 4-bit floats.

Each takes `x`, uint8 (n, bytes per block), and writes `out`, float32 (n, elements per block). Multiplications and
additions stay separate, in the order of ggml's definition: a fused multiply-add would round differently.
"""

from __future__ import annotations

from functools import cache

import torch

E2M1 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
"""Twice the sixteen values of a 4-bit float (OCP Microscaling Formats 1.0, E2M1)."""


def half(x: torch.Tensor, at: int) -> torch.Tensor:
    """The float16 at byte `at` of every block, as float32 (n, 1)."""
    return x[:, at : at + 2].contiguous().view(torch.float16).float()


def planes(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Bytes (…, w) → (…, 8 / bits, w): first everybody's lowest field, then the next."""
    count = 8 // bits
    out = torch.empty((*x.shape[:-1], count, x.shape[-1]), dtype=torch.uint8, device=x.device)
    for i in range(count - 1):
        torch.bitwise_and(x >> (bits * i) if i else x, (1 << bits) - 1, out=out[..., i, :])
    torch.bitwise_right_shift(x, bits * (count - 1), out=out[..., count - 1, :])
    return out


def fields(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Bytes (…, w) → (…, w × 8 / bits): byte after byte, each from its lowest field up."""
    return planes(x, bits).transpose(-1, -2).flatten(-2)


def signed(q: torch.Tensor, offset: int) -> torch.Tensor:
    """Small unsigned quants less `offset`, as int8."""
    return q.view(torch.int8) - offset


def lookup(values: tuple[float, ...], q: torch.Tensor) -> torch.Tensor:
    """`values[q]` as float32, in q's shape."""
    return constant(values, torch.float32, q.device).index_select(0, q.flatten().int()).view(q.shape)


@cache
def constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A table that is copied to a device once, not in every step."""
    return torch.tensor(values, dtype=dtype, device=device)


def q4_0(x: torch.Tensor, out: torch.Tensor) -> None:
    torch.mul(signed(planes(x[:, 2:], 4), 8).view(-1, 32), half(x, 0), out=out)


def q4_1(x: torch.Tensor, out: torch.Tensor) -> None:
    torch.mul(planes(x[:, 4:], 4).view(-1, 32), half(x, 0), out=out).add_(half(x, 2))


def _five_bits(low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    return planes(low, 4).view(-1, 32).bitwise_or_(fields(high, 1) << 4)


def q5_0(x: torch.Tensor, out: torch.Tensor) -> None:
    torch.mul(signed(_five_bits(x[:, 6:], x[:, 2:6]), 16), half(x, 0), out=out)


def q5_1(x: torch.Tensor, out: torch.Tensor) -> None:
    torch.mul(_five_bits(x[:, 8:], x[:, 4:8]), half(x, 0), out=out).add_(half(x, 2))


def q8_0(x: torch.Tensor, out: torch.Tensor) -> None:
    torch.mul(x[:, 2:].view(torch.int8), half(x, 0), out=out)


def q1_0(x: torch.Tensor, out: torch.Tensor) -> None:
    torch.mul(signed(fields(x[:, 2:], 1) << 1, 1), half(x, 0), out=out)


def q2_0(x: torch.Tensor, out: torch.Tensor) -> None:
    torch.mul(signed(fields(x[:, 2:], 2), 1), half(x, 0), out=out)


def q2_k(x: torch.Tensor, out: torch.Tensor) -> None:
    scale = (half(x, 80) * (x[:, :16] & 15)).unsqueeze(-1)
    minimum = (half(x, 82) * (x[:, :16] >> 4)).unsqueeze(-1)
    quants = planes(x[:, 16:80].view(len(x), 2, 32), 2)
    torch.mul(quants.view(-1, 16, 16), scale, out=out.view(-1, 16, 16)).sub_(minimum)


def q3_k(x: torch.Tensor, out: torch.Tensor) -> None:
    """Six-bit scales in bytes 96–107: the low nibbles in eight bytes, the upper two bits in four."""
    packed = planes(x[:, 96:104], 4).view(-1, 16) | (planes(x[:, 104:108], 2).view(-1, 16) << 4)
    scale = (half(x, 108) * signed(packed, 32)).unsqueeze(-1)
    low = planes(x[:, 32:96].view(len(x), 2, 32), 2).view(-1, 8, 32)
    quants = signed(low.bitwise_or_(planes(x[:, :32], 1) << 2), 4)
    torch.mul(quants.view(-1, 16, 16), scale, out=out.view(-1, 16, 16))


def _scales_and_minima(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Bytes 0–15 of Q4_K and Q5_K → float32 (n, 8, 1) each.

    After two float16 factors come twelve bytes with eight 6-bit scales and eight 6-bit minima: numbers 0–3 in the low
    bits of the first four bytes and of the next four; numbers 4–7 in nibbles of the last four, their upper two bits in
    the spare bits of the first eight.
    """
    first, second, third = x[:, 4:8], x[:, 8:12], x[:, 12:16]
    scale = torch.cat([first & 63, (third & 15) | ((first >> 2) & 48)], dim=1)
    minimum = torch.cat([second & 63, (third >> 4) | ((second >> 2) & 48)], dim=1)
    return (half(x, 0) * scale).unsqueeze(-1), (half(x, 2) * minimum).unsqueeze(-1)


def q4_k(x: torch.Tensor, out: torch.Tensor) -> None:
    scale, minimum = _scales_and_minima(x)
    quants = planes(x[:, 16:].view(len(x), 4, 32), 4)
    torch.mul(quants.view(-1, 8, 32), scale, out=out.view(-1, 8, 32)).sub_(minimum)


def q5_k(x: torch.Tensor, out: torch.Tensor) -> None:
    scale, minimum = _scales_and_minima(x)
    quants = planes(x[:, 48:].view(len(x), 4, 32), 4).view(-1, 8, 32)
    quants.bitwise_or_(planes(x[:, 16:48], 1) << 4)
    torch.mul(quants, scale, out=out.view(-1, 8, 32)).sub_(minimum)


def q6_k(x: torch.Tensor, out: torch.Tensor) -> None:
    scale = (half(x, 208) * x[:, 192:208].view(torch.int8)).unsqueeze(-1)
    low = planes(x[:, :128].view(len(x), 2, 64), 4).view(-1, 256)
    high = planes(x[:, 128:192].view(len(x), 2, 32), 2).view(-1, 256)
    quants = signed(low.bitwise_or_(high << 4), 32)
    torch.mul(quants.view(-1, 16, 16), scale, out=out.view(-1, 16, 16))


def _trits(x: torch.Tensor, count: int) -> torch.Tensor:
    """Bytes (n, w) → (n, count × w): the leading base-3 digits of byte / 256, everybody's first digit first."""
    powers = constant(tuple(3**i for i in range(count)), torch.uint8, x.device).unsqueeze(-1)
    return ((x.unsqueeze(1) * powers).short() * 3 >> 8).flatten(1)  # the uint8 product wraps: it drops the digits read


def tq1_0(x: torch.Tensor, out: torch.Tensor) -> None:
    digits = torch.cat([_trits(x[:, :32], 5), _trits(x[:, 32:48], 5), _trits(x[:, 48:52], 4)], dim=1)
    torch.mul(digits - 1, half(x, 52), out=out)


def tq2_0(x: torch.Tensor, out: torch.Tensor) -> None:
    quants = signed(planes(x[:, :64].view(len(x), 2, 32), 2), 1)
    torch.mul(quants.view(-1, 256), half(x, 64), out=out)


def mxfp4(x: torch.Tensor, out: torch.Tensor) -> None:
    """The scale is half of 2^(e − 127), written as float32 bits: e < 2 gives subnormal numbers."""
    exponent = x[:, :1].int()
    bits = torch.where(exponent < 2, 0x00200000 << exponent.clamp(max=1), (exponent - 1) << 23)
    torch.mul(lookup(E2M1, planes(x[:, 1:], 4).view(-1, 32)), bits.view(torch.float32), out=out)


def _ue4m3(byte: int) -> float:
    """Half the value of an unsigned 8-bit float, bias 7; 0x7F, its NaN, counts as zero, and the top bit is ignored."""
    exponent, mantissa = (byte >> 3) & 15, byte & 7
    if byte == 0x7F:
        return 0.0
    return 0.5 * (mantissa / 512 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7))


def nvfp4(x: torch.Tensor, out: torch.Tensor) -> None:
    scales = lookup(tuple(_ue4m3(byte) for byte in range(256)), x[:, :4])
    quants = lookup(E2M1, planes(x[:, 4:].view(len(x), 4, 8), 4).view(-1, 4, 16))
    torch.mul(quants, scales.unsqueeze(-1), out=out.view(-1, 4, 16))
