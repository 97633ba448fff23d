"""The products: codes packed and taken apart, activations rounded, and what dtype, batch and version may not change."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from bestiary.nn.ops import quant
from bestiary.nn.ops.linear import FIXED_TILE
from bestiary.nn.ops.quant import packed, spread, unpacked
from bestiary.nn.ops.registry import Target, choose_ops
from bestiary.nn.quant.fp8 import fp8_rows
from bestiary.nn.quant.grouped import int4_groups
from bestiary.nn.quant.int8 import quantized_rows

ROWS, WIDTH, GROUP = 600, 96, 32


def products():
    """Every op over one random weight: name → (product of x, the weight it stands for)."""
    torch.manual_seed(1)
    weight = torch.randn(ROWS, WIDTH)
    eight, narrow = quantized_rows(weight), fp8_rows(weight)
    four, order = int4_groups(weight, GROUP), torch.randperm(WIDTH).int()
    codes, book = torch.randint(0, 16, (ROWS, WIDTH), dtype=torch.uint8), torch.randn(16)
    groups = [four["weight"], four["weight_scale"], four["weight_zero"], GROUP]
    bytes_ = [unpacked(four["weight"], WIDTH), *groups[1:]]
    scale = torch.rand(ROWS, WIDTH // GROUP)

    scales, zeros = (spread(four[name].float(), GROUP, WIDTH) for name in ("weight_scale", "weight_zero"))
    meant = (bytes_[0].float() - zeros) * scales

    int8, fp8 = [eight["weight"], eight["weight_scale"]], [narrow["weight"], narrow["weight_scale"], WIDTH]
    whole = eight["weight"].float() * eight["weight_scale"][:, None]
    blocks = narrow["weight"].float() * spread(scale, GROUP, WIDTH)
    return {
        "int8": (lambda x: quant.linear_int8(x, *int8), whole),
        "int8 by int8": (lambda x: quant.linear_int8_int8(x, *int8), whole),
        "int8 by asymmetric int8": (lambda x: quant.linear_int8_int8(x, *int8, None, None, False), whole),
        "fp8": (lambda x: quant.linear_fp8(x, *fp8), narrow["weight"].float() * narrow["weight_scale"]),
        "fp8 in groups": (lambda x: quant.linear_fp8(x, narrow["weight"], scale, GROUP), blocks),
        "fp8 by fp8": (lambda x: quant.linear_fp8_fp8(x, narrow["weight"], scale, GROUP, None, GROUP), blocks),
        "int4": (lambda x: quant.linear_int4(x, *groups), meant),
        "int4 in an order": (lambda x: quant.linear_int4(x, *groups, order), meant[:, order.argsort()]),
        "uint8": (lambda x: quant.linear_uint8(x, *bytes_), meant),
        "codebook": (
            lambda x: quant.linear_codebook(x, packed(codes), scale, book, GROUP),
            book[codes.int()] * spread(scale, GROUP, WIDTH),
        ),
    }


PRODUCTS = products()


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(2)


BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 0.02, torch.float16: 0.002}


@pytest.mark.parametrize("dtype", list(BOUNDS), ids=str)
@pytest.mark.parametrize("name", list(PRODUCTS))
def test_products(name, dtype):
    product, weight = PRODUCTS[name]
    x = torch.randn(2, 3, WIDTH).to(dtype)
    got, want = product(x), F.linear(x.float(), weight)
    assert got.dtype is dtype and got.shape == (2, 3, ROWS)
    bound = max(BOUNDS[dtype], {"int8 by": 0.01, "fp8 by ": 0.03}.get(name[:7], 0))
    assert float((got.float() - want).abs().max() / want.abs().max()) < bound


@pytest.mark.parametrize("name", list(PRODUCTS))
def test_a_row_does_not_depend_on_its_batch(name):
    product, _ = PRODUCTS[name]
    x = torch.randn(11, WIDTH)
    offered = {"linear/fixed_tile": FIXED_TILE, "linear_int8_int8/int_mm": quant.INT_MM}
    with choose_ops(Target("cpu", torch.float32, deterministic=True), {}, offered).active():
        assert quant.linear_int8_int8.active is quant.int_mm_linear_int8_int8
        together = product(x)
        alone = torch.cat([product(x[at : at + 1]) for at in range(len(x))])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("stored", [True, False])
def test_int8_instructions_compute_what_the_reference_does(symmetric, stored):
    torch.manual_seed(2)
    x, weight = torch.randn(7, WIDTH), torch.randint(-127, 128, (40, WIDTH), dtype=torch.int8)
    scale, bias = torch.rand(40), torch.randn(40)
    input_scale = torch.tensor(0.02) if stored else None
    zero = torch.tensor(3.0) if stored and not symmetric else None
    given = (x, weight, scale, input_scale, zero, symmetric, bias)
    torch.testing.assert_close(quant.int_mm_linear_int8_int8(*given), quant.linear_int8_int8.reference(*given))


def test_activations_beyond_the_range_stop_at_its_end():
    x = torch.tensor([[1e4, -1e4, 1.0]])
    got = quant.linear_int8_int8(x, torch.eye(3, dtype=torch.int8), torch.ones(3), torch.tensor(0.5))
    assert got.tolist() == [[63.5, -64.0, 1.0]]
    one = torch.eye(3).to(torch.float8_e4m3fn)
    assert quant.linear_fp8_fp8(x, one, torch.ones(3, 1), 3, torch.tensor(0.5)).tolist() == [[224.0, -224.0, 1.0]]


def test_fp16_does_not_overflow_within_a_product():
    weight = torch.full((1, 64), 127, dtype=torch.int8)
    got = quant.linear_int8(torch.full((1, 64), 100.0, dtype=torch.float16), weight, torch.tensor([1e-3]))
    assert abs(float(got) - 812.8) < 0.5


def test_every_e4m3_number():
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    finite = ~codes.float().isnan()
    assert int(finite.sum()) == 254
    for dtype in (torch.float32, torch.bfloat16):
        assert torch.equal(quant.fp8_numbers(codes, dtype)[finite].float(), codes.float()[finite])


def test_zeros_stay_zeros():
    nothing = torch.zeros(4, WIDTH)
    assert not quant.linear_int8_int8(nothing, *quantized_rows(nothing).values()).any()
    assert not quant.linear_fp8_fp8(nothing, *fp8_rows(nothing).values(), WIDTH).any()
    made = int4_groups(nothing, GROUP)
    assert not quant.linear_int4(torch.randn(2, WIDTH), *made.values(), GROUP).any()


@given(st.integers(1, 5), st.integers(1, 70), st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_packing_and_unpacking(rows, width, random):
    codes = torch.tensor([[random.randrange(16) for _ in range(width)] for _ in range(rows)], dtype=torch.uint8)
    assert torch.equal(unpacked(packed(codes), width), codes)


@given(st.integers(1, 4), st.integers(1, 80), st.sampled_from([8, 32, 128]), st.floats(1e-3, 1e3), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_rounding_is_to_the_nearest_step(rows, width, group, size, seed):
    weight = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * size
    made = int4_groups(weight, group)
    codes = unpacked(made["weight"], width).float() - spread(made["weight_zero"].float(), group, width)
    off = (codes * spread(made["weight_scale"], group, width) - weight).abs()
    assert bool((off <= spread(made["weight_scale"], group, width) * 0.5001).all())
    eight = quantized_rows(weight)
    off = (eight["weight"].float() * eight["weight_scale"][:, None] - weight).abs()
    assert bool((off <= eight["weight_scale"][:, None] * 0.5001).all())
    narrow = fp8_rows(weight)
    off = (narrow["weight"].float() * narrow["weight_scale"] - weight).abs()
    assert bool((off <= (weight.abs() / 16).maximum(narrow["weight_scale"] * 2**-10) * 1.0001).all())
