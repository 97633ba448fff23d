"""What lies between products, against core's torch references: norms, activations, rotation, argmax."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from kernel_cases import ABLE, normal, pool
from numpy.typing import NDArray

from bestiary.api.ggml_types import GgmlType
from bestiary.nn.ops import activation, norm, rotary
from bestiary_cpu import _abi, matrix
from bestiary_cpu.memory import address
from bestiary_cpu.pool import Call

Floats = NDArray[np.float32]
each_isa = pytest.mark.parametrize("isa", ABLE)


def run(kernel: str, args: object, isa: str | None = None, threads: int = 2) -> None:
    pool(threads, isa).run([Call(kernel, args)])


def normed(x: Floats, isa: str, threads: int = 2, prepared: matrix.Prepared | None = None, **more: object) -> Floats:
    out = np.empty_like(x)
    fields = {"eps": 1e-5, "rows": len(x), "n": x.shape[1], "x": address(x), "x_stride": x.shape[1]}
    fields |= {name: address(value) if isinstance(value, np.ndarray) else value for name, value in more.items()}
    if prepared is not None:
        fields |= {"quantized": prepared.quantized, "prepared": address(prepared.data)}
    run("bst_norm", _abi.NormArgs(**fields, out=address(out), out_stride=x.shape[1]), isa, threads)
    return out


@each_isa
@pytest.mark.parametrize(("rows", "n"), [(1, 64), (3, 576), (9, 100)])
def test_rms_norm(rows: int, n: int, isa: str) -> None:
    x, weight = normal(rows, n), normal(n, seed=1)
    want = norm.rms_norm(torch.from_numpy(x), torch.from_numpy(weight), 1e-5)
    np.testing.assert_allclose(normed(x, isa, weight=weight), want, rtol=2e-6, atol=1e-6)
    gemma = norm.gemma_rms_norm(torch.from_numpy(x), torch.from_numpy(weight), 1e-5)
    np.testing.assert_allclose(normed(x, isa, weight=weight, weight_offset=1.0), gemma, rtol=2e-6, atol=1e-6)


@each_isa
def test_layer_norm(isa: str) -> None:
    x, weight, bias = normal(5, 96) + 3, normal(96, seed=1), normal(96, seed=2)
    want = norm.layer_norm(torch.from_numpy(x), torch.from_numpy(weight), torch.from_numpy(bias), 1e-5)
    np.testing.assert_allclose(normed(x, isa, weight=weight, bias=bias, center=1), want, rtol=1e-5, atol=1e-5)


@each_isa
def test_the_residual_is_added_first_and_kept(isa: str) -> None:
    x, residual, weight, kept = normal(4, 96), normal(4, 96, seed=3), normal(96, seed=1), np.empty((4, 96), np.float32)
    got = normed(x, isa, residual=residual, residual_stride=96, sum=kept, sum_stride=96, weight=weight)
    assert np.array_equal(kept, x + residual)
    assert np.array_equal(got, normed(kept, isa, weight=weight))


@pytest.mark.parametrize("kind", [GgmlType.Q8_0, GgmlType.F32], ids=lambda kind: kind.name)
def test_results_are_prepared_as_if_afterwards(kind: GgmlType) -> None:
    x = normal(11, 96)
    room = matrix.prepare(pool(), kind, np.zeros_like(x))
    want = matrix.prepare(pool(), kind, normed(x, ABLE[-1], prepared=room))
    assert np.array_equal(room.data, want.data)
    gated = normal(11, 192)
    y = activated(_abi.SILU, gated, True, ABLE[-1], prepared=room)
    assert np.array_equal(room.data, matrix.prepare(pool(), kind, y).data)


def test_norms_are_the_same_in_every_batch_on_every_thread_and_instruction_set() -> None:
    x = normal(9, 576)
    whole = normed(x, ABLE[-1])
    for isa in ABLE:
        for threads in (1, 3):
            assert np.array_equal(normed(x, isa, threads), whole)
            assert np.array_equal(normed(x[4:5], isa, threads), whole[4:5])


def activated(
    function: int, x: Floats, gated: bool, isa: str, threads: int = 2, prepared: matrix.Prepared | None = None
) -> Floats:
    n = x.shape[1] // 2 if gated else x.shape[1]
    out = np.empty((len(x), n), np.float32)
    place = {} if prepared is None else {"quantized": prepared.quantized, "prepared": address(prepared.data)}
    args = _abi.ActivationArgs(function, gated, address(x), x.shape[1], len(x), n, address(out), n, **place)
    run("bst_activation", args, isa, threads)
    return out


FUNCTIONS = {
    _abi.IDENTITY: lambda x: x,
    _abi.SILU: torch.nn.functional.silu,
    _abi.GELU: activation.gelu,
    _abi.GELU_TANH: lambda x: activation.gelu(x, "tanh"),
    _abi.QUICK_GELU: activation.quick_gelu,
    _abi.RELU2: activation.relu2,
}


@each_isa
@pytest.mark.parametrize("function", FUNCTIONS)
def test_activations(function: int, isa: str) -> None:
    x = np.concatenate([normal(3, 200) * 5, np.linspace(-120, 120, 200, dtype=np.float32)[None]])
    exact = FUNCTIONS[function](torch.from_numpy(x).double()).numpy()
    got = activated(function, x, False, isa)
    np.testing.assert_allclose(got, exact, rtol=1e-6, atol=1e-6)
    assert np.array_equal(got, activated(function, x, False, "scalar", threads=3))
    both = np.concatenate([x, x[::-1]], 1)
    assert np.array_equal(activated(function, both, True, isa), got * x[::-1])


def test_activations_of_what_is_not_a_number_are_none() -> None:
    x = np.full((1, 32), math.nan, np.float32)
    for function in FUNCTIONS:
        assert np.isnan(activated(function, x, False, ABLE[-1])).all(), function


@each_isa
@pytest.mark.parametrize("neox", [True, False])
@pytest.mark.parametrize("rotary_dim", [32, 16])
def test_rotation_is_bit_for_bit_the_reference_and_keys_are_stored(neox: bool, rotary_dim: int, isa: str) -> None:
    rows, heads, kv_heads, size = 5, 6, 2, 32
    query, key, value = normal(rows, heads * size), normal(rows, kv_heads * size, seed=1), normal(rows, kv_heads * size)
    cos, sin = normal(rows, rotary_dim, seed=2), normal(rows, rotary_dim, seed=3)
    tensors = [torch.from_numpy(each) for each in (query, key, cos[:, None], sin[:, None])]
    turned, keys = rotary.rotary_embedding(*tensors, size, neox)
    cache = np.zeros((3, 4, 2, kv_heads, size), np.float32)
    slots = np.array([7, 2, -1, 0, 11])
    args = _abi.RopeArgs(
        query=address(query), query_stride=heads * size, key=address(key), key_stride=kv_heads * size,
        value=address(value), value_stride=kv_heads * size, cos=address(cos), sin=address(sin),
        angle_stride=rotary_dim, slots=address(slots), rows=rows, heads=heads, kv_heads=kv_heads, head_size=size,
        rotary_dim=rotary_dim, neox=neox, kv_type=_abi.KV_F32, block_size=4,
        kv_cache=address(cache),
    )  # fmt: skip
    run("bst_rope", args, isa)
    assert np.array_equal(query, turned)
    want = np.zeros_like(cache)
    for row, slot in enumerate(slots):
        if slot >= 0:
            want[slot // 4, slot % 4, 0] = keys[row].view(kv_heads, size)
            want[slot // 4, slot % 4, 1] = value[row].reshape(kv_heads, size)
    assert np.array_equal(cache, want)


def test_the_largest_logit_is_the_first_of_equals_and_not_a_number_wins() -> None:
    x = normal(4, 1000)
    x[1, [3, 70]] = 9
    x[2, [5, 900]] = math.nan
    x[3] = -math.inf
    ids = np.empty(4, np.int64)
    run("bst_argmax", _abi.ArgmaxArgs(address(x), 1000, 4, 1000, address(ids)))
    assert ids.tolist() == [int(x[0].argmax()), 3, 5, 0]
