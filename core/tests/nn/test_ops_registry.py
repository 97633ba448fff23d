"""The op registry: references, choice, refusal."""

import pytest
import torch

from bestiary.api.errors import UsageError
from bestiary.nn.ops.linear import FEW_ROWS, FIXED_TILE, few_rows_linear, fixed_tile_linear, linear
from bestiary.nn.ops.registry import OPS, REFERENCE, Op, Target, bind_ops

CPU = Target("cpu", torch.float32)


def double(x: int) -> int:
    return x * 2


def test_an_op_is_its_reference_until_bound():
    made = Op(double)
    assert made(4) == 8
    assert made.active_name == REFERENCE
    assert made.__name__ == "double"


def test_the_best_version_that_can_run_is_chosen():
    made = Op(double)
    made.register("fast", priority=5)(lambda x: x + x)
    made.register("gpu", why_not=lambda target: None if target.device == "cuda" else "needs CUDA", priority=9)(double)
    made.bind(CPU)
    assert made.active_name == "fast"
    made.bind(Target("cuda", torch.float16))
    assert made.active_name == "gpu"
    made.bind(CPU, "reference")
    assert made.active is made.reference


def test_a_version_asked_for_that_cannot_run_is_an_error_with_the_reason():
    made = Op(double)
    made.register("gpu", why_not=lambda target: "needs CUDA")(double)
    with pytest.raises(UsageError, match="needs CUDA") as caught:
        made.bind(CPU, "gpu")
    assert "reference" in str(caught.value)
    with pytest.raises(UsageError, match="no implementation 'nope'"):
        made.bind(CPU, "nope")
    assert made.active_name == REFERENCE


def test_a_name_is_taken_once():
    made = Op(double)
    made.register("fast")(double)
    with pytest.raises(UsageError, match="already"):
        made.register("fast")(double)


def test_bind_ops_names_what_was_chosen_and_refuses_unknown_ops():
    chosen = bind_ops(CPU, {"linear": REFERENCE})
    assert chosen["linear"] == REFERENCE
    assert set(chosen) == set(OPS)
    with pytest.raises(UsageError, match="no op 'nope'"):
        bind_ops(CPU, {"nope": "x"})


def test_deterministic_targets_get_the_fixed_tile_product():
    offered = {"linear/fixed_tile": FIXED_TILE, "linear/few_rows": FEW_ROWS}
    try:
        assert bind_ops(Target("cpu", torch.float32, deterministic=True), {}, offered)["linear"] == "fixed_tile"
        assert bind_ops(CPU, {}, offered)["linear"] == "few_rows"
        assert bind_ops(Target("cpu", torch.bfloat16), {}, offered)["linear"] == REFERENCE
    finally:
        bind_ops(CPU, {"linear": REFERENCE})
    assert linear.active_name == REFERENCE


@pytest.mark.parametrize("shape", [(0,), (1,), (2,), (3,), (4,), (5,), (2, 3), ()])
def test_few_rows_give_the_reference_product(shape):
    x, weight, bias = torch.randn(*shape, 96), torch.randn(40, 96), torch.randn(40)
    for given in (None, bias):
        out, want = few_rows_linear(x, weight, given), linear.reference(x, weight, given)
        assert out.is_contiguous()
        torch.testing.assert_close(out, want, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("rows", [1, 2, 7, 8, 9, 33, 200])
def test_fixed_tile_rows_do_not_depend_on_their_batch(rows):
    generator = torch.Generator().manual_seed(rows)
    weight = torch.randn(96, 160, generator=generator)
    bias = torch.randn(96, generator=generator)
    x = torch.randn(rows, 160, generator=generator)
    together = fixed_tile_linear(x, weight, bias)
    alone = torch.cat([fixed_tile_linear(x[i : i + 1], weight, bias) for i in range(rows)])
    assert torch.equal(together, alone)
    torch.testing.assert_close(together, torch.nn.functional.linear(x, weight, bias), atol=1e-4, rtol=1e-5)
