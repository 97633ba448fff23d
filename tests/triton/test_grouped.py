"""Products with codes of 8 and 4 bits against the torch references."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from emulated import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from bestiary.nn.ops import quant as reference
from bestiary.nn.quant.fp8 import fp8_rows
from bestiary.nn.triton import grouped

_SHAPE: dict[str, Any] = {
    "rows": st.sampled_from([0, 1, 16, 17, 40]), "width": st.integers(1, 40),
    "depth": st.integers(1, 150) | st.sampled_from([256, 300]),
    "dtype": st.sampled_from([torch.float32, torch.float16]),
}  # fmt: skip


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _codes(high: int, *shape: int, low: int = 0) -> torch.Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(2))


def _close(name: str, *given_: Any) -> None:
    wanted = getattr(reference, name).reference(*given_)
    torch.testing.assert_close(getattr(grouped, name)(*given_), wanted, atol=3e-2, rtol=4e-3)


@settings(max_examples=examples(12), deadline=None)
@given(**_SHAPE, has_bias=st.booleans())
def test_int8(rows: int, width: int, depth: int, dtype: torch.dtype, has_bias: bool) -> None:
    x, scale = _random(rows, depth).to(dtype), torch.full((width,), 0.01)
    bias = _random(width, seed=3).to(dtype) if has_bias else None
    _close("linear_int8", x, _codes(128, width, depth, low=-128).to(torch.int8), scale, bias)


@settings(max_examples=examples(15), deadline=None)
@given(**_SHAPE, name=st.sampled_from(["linear_int4", "linear_uint8"]),
       group=st.sampled_from([16, 32, 64, 128, 200, 7]), ordered=st.booleans())  # fmt: skip
def test_grouped(rows: int, width: int, depth: int, dtype: torch.dtype, name: str, group: int, ordered: bool) -> None:
    high = 16 if name == "linear_int4" else 256
    codes = _codes(high, width, depth).to(torch.uint8)
    weight = reference.packed(codes) if high == 16 else codes
    groups = -(-depth // group)
    scale, zero = _random(width, groups).abs() * 0.3 / high, _codes(high, width, groups).to(torch.uint8)
    order = torch.randperm(depth, generator=torch.Generator().manual_seed(7)).to(torch.int32) if ordered else None
    _close(name, _random(rows, depth).to(dtype), weight, scale, zero, group, order)


@settings(max_examples=examples(12), deadline=None)
@given(**_SHAPE, group=st.sampled_from([0, 32, 128]))
def test_fp8(rows: int, width: int, depth: int, dtype: torch.dtype, group: int) -> None:
    made = fp8_rows(_random(width, depth, seed=1) * 0.1)
    groups = -(-depth // group) if group else 1
    scale = made["weight_scale"].expand(-1, groups) * (1 + _random(1, groups).abs())
    _close("linear_fp8", _random(rows, depth).to(dtype), made["weight"], scale, group or depth)


@settings(max_examples=examples(10), deadline=None)
@given(**_SHAPE, group=st.sampled_from([16, 64, 200]))
def test_codebook(rows: int, width: int, depth: int, dtype: torch.dtype, group: int) -> None:
    weight = reference.packed(_codes(16, width, depth).to(torch.uint8))
    scale = _random(width, -(-depth // group)).abs() * 0.1
    _close("linear_codebook", _random(rows, depth).to(dtype), weight, scale, _random(16, seed=5), group)


EXACT: dict[str, tuple[Any, ...]] = {
    "linear_int8": (_codes(128, 40, 150, low=-128).to(torch.int8), torch.full((40,), 0.01)),
    "linear_fp8": (_codes(120, 40, 150).to(torch.uint8).view(torch.float8_e4m3fn), torch.ones(40, 5), 32),
    "linear_int4": (_codes(256, 40, 75).to(torch.uint8), torch.ones(40, 5), _codes(16, 40, 5).to(torch.uint8), 32),
    "linear_codebook": (_codes(256, 40, 75).to(torch.uint8), torch.ones(40, 5), _random(16), 32),
}  # fmt: skip


@pytest.mark.parametrize("name", EXACT)
def test_an_exact_row_has_its_own_bits(name: str) -> None:
    """Alone, in a step of few tokens, and in a prompt of many."""
    x, product = _random(70, 150), getattr(grouped, name)
    together = product(x, *EXACT[name], exact=True)
    torch.testing.assert_close(together, getattr(reference, name).reference(x, *EXACT[name]), rtol=1e-4, atol=1e-3)
    for rows in (slice(0, 1), slice(3, 19), slice(69, 70)):
        assert torch.equal(product(x[rows], *EXACT[name], exact=True), together[rows])


def test_exact_tiles_are_one() -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        assert len({grouped.tile_of("int4", "even", rows, dtype, True) for rows in (1, 16, 17, 64, 5000)}) == 1


def test_every_e4m3_number_is_read() -> None:
    codes = torch.tensor([code for code in range(256) if code & 127 != 127], dtype=torch.uint8)
    weight = codes.view(torch.float8_e4m3fn).unsqueeze(0)
    got = grouped.linear_fp8(torch.eye(len(codes)), weight, torch.ones(1, 1), len(codes))
    assert torch.equal(got.flatten(), weight.float().flatten())


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 16, 200])
def test_on_a_gpu(rows: int) -> None:
    x, codes = _random(rows, 4096).bfloat16(), _codes(16, 1000, 4096).to(torch.uint8)
    scale, zero = _random(1000, 32).abs() * 0.01, _codes(16, 1000, 32).to(torch.uint8)
    given_ = (reference.packed(codes), scale, zero, 128)
    wanted = reference.linear_int4.reference(x.float(), *given_)
    got = grouped.linear_int4(x.cuda(), *(each.cuda() if isinstance(each, torch.Tensor) else each for each in given_))
    assert float((got.float().cpu() - wanted).norm() / wanted.norm()) < 1e-2
