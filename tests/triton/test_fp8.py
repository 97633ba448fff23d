"""Activations rounded to e4m3, and which products are torch's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from emulated import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from bestiary.nn.ops import quant as reference
from bestiary.nn.ops.registry import Target
from bestiary.nn.quant.fp8 import fp8_rows
from bestiary.nn.triton import fp8, fp8_blocks
from bestiary.nn.triton.offers import SCALED_MM


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=examples(15), deadline=None)
@given(rows=st.integers(0, 5), depth=st.sampled_from([1, 33, 4100]), static=st.booleans(), zeros=st.booleans())
def test_rounding_equals_reference(rows: int, depth: int, static: bool, zeros: bool) -> None:
    x = _random(rows, depth) * (0 if zeros else 3)
    scale = torch.tensor(0.003) if static else None
    codes, scales = fp8.rounded_to_fp8(x, scale)
    wanted = torch.full((rows, 1), 0.003) if static else x.abs().amax(1, keepdim=True).clamp_min(1e-12) / 448
    assert torch.equal(scales, wanted)
    assert torch.equal(codes.float(), reference.to_fp8(x / wanted).float())


def test_every_kind_of_number_is_rounded_as_torch_does() -> None:
    numbers = torch.cat([torch.logspace(-12, 9, 3000, base=2), torch.arange(0, 450) / 1024, torch.arange(449.0)])
    numbers = torch.cat([numbers, -numbers]).unsqueeze(0)
    codes, _ = fp8.rounded_to_fp8(numbers, torch.tensor(1.0))
    assert torch.equal(codes.float(), reference.to_fp8(numbers).float())


def test_a_token_with_nan_has_no_scale() -> None:
    _, scales = fp8.rounded_to_fp8(torch.tensor([[1.0, torch.nan], [1.0, 2.0]]))
    assert scales.isnan().flatten().tolist() == [True, False]


@settings(max_examples=examples(20), deadline=None)
@given(rows=st.sampled_from([0, 1, 17, 40]), width=st.integers(1, 40), depth=st.sampled_from([40, 128, 384]),
       by=st.sampled_from(["token", "stored", "group"]), blocks=st.booleans(), has_bias=st.booleans(),
       half=st.booleans())  # fmt: skip
def test_products(rows: int, width: int, depth: int, by: str, blocks: bool, has_bias: bool, half: bool) -> None:
    """A scale a row or a block of 128 inputs; activations by a scale a token, one for all, or one each 128 inputs."""
    made, dtype = fp8_rows(_random(width, depth, seed=1)), torch.float16 if half else torch.float32
    scale = made["weight_scale"] * (1 + _random(1, -(-depth // 128), seed=2).abs()) if blocks else made["weight_scale"]
    given_: dict[str, Any] = {"input_group": 128} if by == "group" and depth % 128 == 0 else {}
    given_ |= {"input_scale": torch.tensor(0.01)} if by == "stored" else {}
    given_ |= {"bias": _random(width, seed=3).to(dtype)} if has_bias else {}
    args = (_random(rows, depth).to(dtype), made["weight"], scale, 128)
    assert fp8_blocks.why_not(depth, 128, scale.shape[1], given_.get("input_group")) is None
    wanted = reference.linear_fp8_fp8.reference(*args, **given_)
    for product in (fp8.linear_fp8_fp8, fp8_blocks.linear_fp8_fp8):
        torch.testing.assert_close(product(*args, **given_), wanted, rtol=1e-3, atol=2e-2 if half else 1e-4)


def test_groups_that_the_kernel_does_not_take_are_the_references() -> None:
    x, made = _random(3, 40), fp8_rows(_random(24, 40, seed=1))
    args = (x, made["weight"], made["weight_scale"], 40)
    assert fp8_blocks.why_not(40, 40, 1, 16) == "groups of activations that do not fill a row"
    assert fp8_blocks.why_not(40, 40, 1, 20) == "groups that are no multiple of 128"
    assert fp8_blocks.why_not(256, 128, 2, 256) == "groups of activations that are not the weights'"
    wanted = reference.linear_fp8_fp8.reference(*args, input_group=20)
    assert torch.equal(fp8.linear_fp8_fp8(*args, input_group=20), wanted)


def test_an_exact_row_has_its_own_bits() -> None:
    made = fp8_rows(_random(40, 256, seed=1))
    scale, x = made["weight_scale"] * torch.tensor([[1.0, 2.0]]), _random(70, 256)
    together = fp8_blocks.linear_fp8_fp8(x, made["weight"], scale, 128, input_group=128, exact=True)
    for rows in (slice(0, 1), slice(3, 19), slice(69, 70)):
        alone = fp8_blocks.linear_fp8_fp8(x[rows], made["weight"], scale, 128, input_group=128, exact=True)
        assert torch.equal(alone, together[rows])


def test_it_is_refused_with_a_reason_where_it_cannot_run() -> None:
    assert SCALED_MM.why_not(Target("cpu", torch.bfloat16)) == "for CUDA"
    assert SCALED_MM.why_not(Target("cuda", torch.float32)) == "for bfloat16"


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 40, 700])
@pytest.mark.parametrize("group", [None, 128])
def test_blocks_on_a_gpu(rows: int, group: int | None) -> None:
    x, made = _random(rows, 2048).bfloat16(), fp8_rows(_random(1024, 2048, seed=1))
    scale = made["weight_scale"] * (1 + _random(1, 16, seed=2).abs())
    wanted = reference.linear_fp8_fp8.reference(x.float(), made["weight"], scale, 128, input_group=group)
    for exact in (False, True):
        found = fp8_blocks.linear_fp8_fp8(
            x.cuda(), made["weight"].cuda(), scale.cuda(), 128, input_group=group, exact=exact
        )
        assert float((found.float().cpu() - wanted).norm() / wanted.norm()) < 1e-2


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 16, 200])
def test_on_a_gpu(rows: int) -> None:
    x, made = _random(rows, 4096).bfloat16(), fp8_rows(_random(1024, 4096, seed=1))
    args = (x, made["weight"], made["weight_scale"], 4096)
    wanted = reference.linear_fp8_fp8.reference(x.float(), *args[1:])
    got = fp8.linear_fp8_fp8(*(each.cuda() if isinstance(each, torch.Tensor) else each for each in args))
    assert float((got.float().cpu() - wanted).norm() / wanted.norm()) < 1e-2
