"""Activations rounded to e4m3, and which products are torch's."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bestiary.nn.ops import quant as reference
from bestiary.nn.ops.registry import Target
from bestiary.nn.quant.fp8 import fp8_rows
from bestiary.nn.triton import fp8
from bestiary.nn.triton.offers import LINEAR_FP8_FP8


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=15, deadline=None)
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


@pytest.mark.parametrize("given_", [{}, {"input_scale": torch.tensor(0.01)}, {"input_group": 16}])
def test_what_torch_does_not_take_is_the_references(given_: dict[str, object]) -> None:
    x, made = _random(3, 40), fp8_rows(_random(24, 40, seed=1))
    args = (x, made["weight"], made["weight_scale"], 40)
    wanted = reference.linear_fp8_fp8.reference(*args, **given_)
    assert torch.equal(fp8.linear_fp8_fp8(*args, **given_), wanted)


def test_it_is_refused_with_a_reason_where_it_cannot_run() -> None:
    assert LINEAR_FP8_FP8.why_not(Target("cpu", torch.bfloat16)) == "for CUDA"
    assert LINEAR_FP8_FP8.why_not(Target("cuda", torch.float32)) == "for bfloat16"


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 16, 200])
def test_on_a_gpu(rows: int) -> None:
    x, made = _random(rows, 4096).bfloat16(), fp8_rows(_random(1024, 4096, seed=1))
    args = (x, made["weight"], made["weight_scale"], 4096)
    wanted = reference.linear_fp8_fp8.reference(x.float(), *args[1:])
    got = fp8.linear_fp8_fp8(*(each.cuda() if isinstance(each, torch.Tensor) else each for each in args))
    assert float((got.float().cpu() - wanted).norm() / wanted.norm()) < 1e-2
