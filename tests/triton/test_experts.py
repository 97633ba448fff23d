"""Experts with biases, codes for weights and rounded activations, against their torch references."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from emulated import examples
from gguf import GGMLQuantizationType, quants
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bestiary.api.ggml_types import GgmlType
from bestiary.nn.ops import moe as reference
from bestiary.nn.ops import quant
from bestiary.nn.ops.activation import relu2, silu_and_mul
from bestiary.nn.ops.gguf import BlockRows, linear_gguf
from bestiary.nn.ops.linear import linear
from bestiary.nn.ops.product import Product
from bestiary.nn.quant.fp8 import fp8_rows
from bestiary.nn.quant.grouped import int4_groups
from bestiary.nn.quant.int8 import quantized_rows
from bestiary.nn.triton import experts, stacked

Stacked = Callable[[Tensor], Product]


def numbers(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def together(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([part[name] for part in parts]) for name in parts[0]}


def int8(weight: Tensor, **given: Any) -> Product:
    parts = together([quantized_rows(each) for each in weight])
    tensors = {"weight": parts["weight"], "scale": parts["weight_scale"]}
    return Product(quant.linear_int8_int8 if given else quant.linear_int8, tensors, given)


def int8_static(weight: Tensor) -> Product:
    product = int8(weight, symmetric=False)
    own = {"input_scale": 0.02 + 0.01 * torch.arange(len(weight)), "input_zero": torch.full((len(weight),), 3.0)}
    return product._replace(tensors={**product.tensors, **own})


def fp8(weight: Tensor, group: int = 0, **given: Any) -> Product:
    parts = together([fp8_rows(each) for each in weight])
    scale = parts["weight_scale"]
    if group:
        count = -(-weight.shape[2] // group)
        scale = scale * (1 + numbers(1, 1, count, seed=9).abs())
    sizes = {"group_size": group or 128}
    if given:
        return Product(quant.linear_fp8_fp8, {"weight": parts["weight"], "scale": scale}, sizes | given)
    return Product(quant.linear_fp8, {"weight": parts["weight"], "scale": scale}, sizes)


def fp8_static(weight: Tensor) -> Product:
    product = fp8(weight, input_group=None)
    return product._replace(tensors={**product.tensors, "input_scale": 0.01 + 0.01 * torch.arange(len(weight))})


def int4(weight: Tensor, ordered: bool = False, group: int = 32) -> Product:
    parts = together([int4_groups(each, group) for each in weight])
    tensors = {"weight": parts["weight"], "scale": parts["weight_scale"], "zero": parts["weight_zero"]}
    if ordered:
        drawn = torch.Generator().manual_seed(4)
        orders = [torch.randperm(weight.shape[2], generator=drawn) for _ in weight]
        tensors["order"] = torch.stack(orders).to(torch.int32)
    return Product(quant.linear_int4, tensors, {"group_size": group})


def uint8(weight: Tensor) -> Product:
    scale, zero = torch.full((*weight.shape[:2], 1), 0.02), torch.full((*weight.shape[:2], 1), 120, dtype=torch.uint8)
    codes = (weight / 0.02 + 120).round().clamp(0, 255).to(torch.uint8)
    return Product(quant.linear_uint8, {"weight": codes, "scale": scale, "zero": zero}, {"group_size": 64})


def codebook(weight: Tensor) -> Product:
    table = torch.linspace(-1, 1, 16).expand(len(weight), -1)
    codes = ((weight.clamp(-0.5, 0.5) + 0.5) * 15).round().to(torch.uint8)
    packed = torch.stack([quant.packed(each) for each in codes])
    scale = torch.full((*weight.shape[:2], -(-weight.shape[2] // 16)), 0.5)
    return Product(quant.linear_codebook, {"weight": packed, "scale": scale, "codebook": table}, {"group_size": 16})


def blocks(weight: Tensor, kind: str = "Q4_0") -> Product:
    made = [torch.from_numpy(quants.quantize(each.numpy(), GGMLQuantizationType[kind])) for each in weight]
    run = BlockRows(GgmlType[kind], 0, weight.shape[1], made[0].shape[1])
    return Product(linear_gguf, {"weight": torch.stack(made)}, {"runs": [run]})


def plain(weight: Tensor) -> Product:
    return Product(linear, {"weight": weight})


KINDS: dict[str, Stacked] = {
    "plain": plain,
    "int8": int8,
    "int8, int8 activations": lambda weight: int8(weight, symmetric=True),
    "int8, int8 activations with a zero": lambda weight: int8(weight, symmetric=False),
    "int8, stored scales": int8_static,
    "fp8": fp8,
    "fp8 in groups": lambda weight: fp8(weight, 32),
    "fp8, fp8 activations": lambda weight: fp8(weight, input_group=None),
    "fp8 in blocks, fp8 activations": lambda weight: fp8(weight, 128, input_group=128),
    "fp8 in blocks, a scale a token": lambda weight: fp8(weight, 128, input_group=None),
    "fp8, stored scales": fp8_static,
    "int4": int4,
    "int4, ordered": lambda weight: int4(weight, ordered=True),
    "int4 in groups of 128": lambda weight: int4(weight, group=128),
    "fp8 in groups of 128": lambda weight: fp8(weight, 128),
    "uint8": uint8,
    "codebook": codebook,
    "Q4_0": blocks,
    "Q8_0": lambda weight: blocks(weight, "Q8_0"),
}
ROUNDED = {kind for kind in KINDS if "activations" in kind or "a scale a token" in kind or "stored" in kind}
IN_BLOCKS = {
    "int4 in groups of 128", "fp8 in groups of 128", "Q4_0", "Q8_0", "fp8 in blocks, fp8 activations",
    "fp8 in blocks, a scale a token",
}  # fmt: skip


def compared(
    kind: str, tokens: int, dtype: torch.dtype, *, count: int = 3, top_k: int = 2, hidden: int = 70, width: int = 24,
    has_bias: bool = False, gated: bool = True, device: str = "cpu", act: str = "silu",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    first_rows = width * (1 + gated)
    first = KINDS[kind](numbers(count, first_rows, hidden, seed=1) / hidden**0.5)
    second = KINDS[kind](numbers(count, hidden, width, seed=2) / width**0.5)
    if has_bias:
        first = first._replace(bias=numbers(count, first_rows, seed=6).to(dtype))
        second = second._replace(bias=numbers(count, hidden, seed=7).to(dtype))
    first, second = (on(each, device, dtype) for each in (first, second))
    x = numbers(tokens, hidden + 3, seed=0)[:, :hidden].to(device, dtype)
    weights = numbers(tokens, top_k, seed=3).softmax(-1).to(device)
    slots = numbers(tokens, count + 1, seed=4).argsort(-1)[:, :top_k].to(device) - 1
    given = x, first, second, weights, slots, reference.ACTIVATIONS[act] if gated else relu2
    return experts.grouped_experts(*given), reference.grouped_experts.reference(*given)


def on(product: Product, device: str, dtype: torch.dtype) -> Product:
    moved = {name: each.to(device) for name, each in product.tensors.items()}
    if product.op is linear:
        moved = {name: each.to(dtype) for name, each in moved.items()}
    return product._replace(tensors=moved, bias=None if product.bias is None else product.bias.to(device))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # places of absent experts hold anything, and nobody reads them
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [2, 40])
def test_experts(kind: str, tokens: int) -> None:
    sizes = {"hidden": 256, "width": 128} if kind in IN_BLOCKS else {}
    check(kind, *compared(kind, tokens, torch.float32, has_bias=tokens == 2, **sizes))


def check(kind: str, found: Tensor, wanted: Tensor) -> None:
    """Where activations are rounded, another order of the sums before may round one of them to its other neighbour."""
    if kind in ROUNDED:
        assert float((found - wanted).norm()) <= 1e-2 * float(wanted.norm()) + 1e-6
    else:
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@settings(max_examples=examples(12), deadline=None)
@given(kind=st.sampled_from([each for each in KINDS if each not in IN_BLOCKS]), tokens=st.integers(0, 20),
       count=st.integers(2, 5), hidden=st.sampled_from([32, 34, 100]), width=st.sampled_from([16, 34]),
       has_bias=st.booleans(), gated=st.booleans())  # fmt: skip
def test_experts_of_any_shape(kind: str, tokens: int, **sizes: Any) -> None:
    check(kind, *compared(kind, tokens, torch.float32, **sizes))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("kind", ["int4", "fp8, fp8 activations", "int8, int8 activations with a zero", "plain"])
def test_experts_in_half_precision(kind: str) -> None:
    found, wanted = compared(kind, 20, torch.float16)
    torch.testing.assert_close(found, wanted, rtol=1e-2, atol=1e-2)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("kind", ["int4", "fp8, fp8 activations", "plain"])
def test_exact_experts_do_not_look_at_other_tokens(kind: str) -> None:
    first, second = KINDS[kind](numbers(3, 48, 70, seed=1)), KINDS[kind](numbers(3, 70, 24, seed=2))
    x, weights = numbers(40, 70, seed=0), numbers(40, 2, seed=3).softmax(-1)
    slots = numbers(40, 3, seed=4).argsort(-1)[:, :2]
    together = experts.grouped_experts(x, first, second, weights, slots, silu_and_mul, exact=True)
    for rows in (slice(0, 1), slice(3, 19), slice(39, 40)):
        given = x[rows], first, second, weights[rows], slots[rows], silu_and_mul
        assert torch.equal(experts.grouped_experts(*given, exact=True), together[rows])


def test_what_the_kernel_does_not_take_the_reference_computes() -> None:
    wide = fp8(numbers(2, 8, 100, seed=1), input_group=64)
    assert stacked.why_not(wide) == "groups of activations that do not fill a row"
    second = plain(numbers(2, 100, 4, seed=2))
    given = numbers(3, 100, seed=0), wide, second, torch.ones(3, 1), torch.tensor([[0], [1], [-1]]), silu_and_mul
    assert torch.equal(experts.grouped_experts(*given), reference.grouped_experts.reference(*given))
    assert stacked.why_not(fp8(numbers(2, 8, 128, seed=1), 32, input_group=32)) == "groups that are no multiple of 128"
    assert "IQ" not in str(stacked.why_not(blocks(numbers(2, 8, 64, seed=1))))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("act", ["gelu", "gelu_tanh"])
def test_gates_of_other_kinds(act: str) -> None:
    check("int8", *compared("int8", 20, torch.float32, act=act))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [1, 64, 500])
def test_experts_on_a_gpu(kind: str, tokens: int) -> None:
    sizes: dict[str, Any] = {"count": 8, "hidden": 1024, "width": 512}
    found, wanted = compared(kind, tokens, torch.bfloat16, device="cuda", **sizes)
    assert float((found - wanted).float().norm() / wanted.float().norm()) < 2e-2


@pytest.mark.gpu
def test_quantized_experts_do_not_wait_for_the_gpu() -> None:
    compared("fp8, stored scales", 4, torch.bfloat16, device="cuda")
    first, second = (on(int4(numbers(3, *shape, seed=1)), "cuda", torch.bfloat16) for shape in ((48, 64), (64, 24)))
    x, slots = numbers(4, 64, seed=0).cuda().bfloat16(), torch.zeros(4, 2, dtype=torch.int64, device="cuda")
    given = x, first, second, torch.ones(4, 2, device="cuda"), slots, silu_and_mul
    experts.grouped_experts(*given)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = experts.grouped_experts(*given)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert found.shape == x.shape
