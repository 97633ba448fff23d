"""The op registry: references, choice, refusal."""

import threading

import pytest
import torch

from bestiary.api.errors import UsageError
from bestiary.nn.ops.linear import BY_SHAPE, FIXED_TILE, fixed_tile_linear, linear, linear_by_shape
from bestiary.nn.ops.registry import OPS, REFERENCE, Implementation, Op, Target, choose_ops

CPU = Target("cpu", torch.float32)


def double(x: int) -> int:
    return x * 2


def test_an_op_is_its_reference_outside_every_engine():
    made = Op(double)
    assert made(4) == 8
    assert made.active is double
    assert made.__name__ == "double"


def test_the_best_version_that_can_run_is_chosen():
    made = Op(double)
    made.register("fast", priority=5)(lambda x: x + x)
    made.register("gpu", why_not=lambda target: None if target.device == "cuda" else "needs CUDA", priority=9)(double)
    assert made.choose(CPU).name == "fast"
    assert made.choose(Target("cuda", torch.float16)).name == "gpu"
    assert made.choose(CPU, "reference").function is made.reference


def test_a_version_asked_for_that_cannot_run_is_an_error_with_the_reason():
    made = Op(double)
    made.register("gpu", why_not=lambda target: "needs CUDA")(double)
    with pytest.raises(UsageError, match="needs CUDA") as caught:
        made.choose(CPU, "gpu")
    assert "reference" in str(caught.value)
    with pytest.raises(UsageError, match="no implementation 'nope'"):
        made.choose(CPU, "nope")


def test_a_name_is_taken_once_but_the_same_version_may_come_again():
    made = Op(double)
    made.add(Implementation("fast", double))
    made.add(Implementation("fast", double))
    with pytest.raises(UsageError, match="already"):
        made.register("fast")(lambda x: x + x)


def test_choose_ops_names_what_was_chosen_and_refuses_unknown_ops():
    chosen = choose_ops(CPU, {"linear": REFERENCE}).names
    assert chosen["linear"] == REFERENCE
    assert set(chosen) == set(OPS)
    with pytest.raises(UsageError, match="no op 'nope'"):
        choose_ops(CPU, {"nope": "x"})


def test_deterministic_targets_get_the_fixed_tile_product():
    offered = {"linear/fixed_tile": FIXED_TILE, "linear/by_shape": BY_SHAPE}
    assert choose_ops(Target("cpu", torch.float32, deterministic=True), {}, offered).names["linear"] == "fixed_tile"
    assert choose_ops(CPU, {}, offered).names["linear"] == "by_shape"
    assert choose_ops(Target("cpu", torch.bfloat16), {}, offered).names["linear"] == REFERENCE


def test_a_choice_is_in_force_while_it_is_active_and_no_longer():
    fixed = choose_ops(CPU, {"linear": REFERENCE})
    offered = {"linear/by_shape": BY_SHAPE}
    few = choose_ops(CPU, {}, offered)
    with few.active():
        assert linear.active is linear_by_shape
        with fixed.active():
            assert linear.active is linear.reference
        assert linear.active is linear_by_shape
    assert linear.active is linear.reference


def test_while_one_choice_is_active_other_threads_wait():
    seen, inside = [], threading.Event()

    def other():
        inside.wait()
        with choose_ops(CPU, {"linear": REFERENCE}).active():
            seen.append("other")

    thread = threading.Thread(target=other)
    thread.start()
    with choose_ops(CPU, {}, {"linear/by_shape": BY_SHAPE}).active():
        inside.set()
        thread.join(0.1)
        seen.append("first")
        assert linear.active is linear_by_shape
    thread.join()
    assert seen == ["first", "other"]


@pytest.mark.parametrize("shape", [(0,), (1,), (2,), (3,), (4,), (5,), (64,), (100,), (2, 3), ()])
def test_by_shape_gives_the_reference_product(shape):
    width = 3500 if shape in ((64,), (100,)) else 40
    x, weight, bias = torch.randn(*shape, 96), torch.randn(width, 96), torch.randn(width)
    for given in (None, bias):
        out, want = linear_by_shape(x, weight, given), linear.reference(x, weight, given)
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
