"""Every format against the `gguf` package's decoding, an exact model of the arithmetic, and itself in other shapes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import ABLE, QUANTIZED, blocks, decoded, fma, normal, pool, quantized_rows
from numpy.typing import NDArray

from bestiary.api.errors import UsageError
from bestiary.api.ggml_types import GgmlType
from bestiary_cpu import matrix

Floats = NDArray[np.float32]
each_format = pytest.mark.parametrize("kind", matrix.FORMATS, ids=lambda kind: kind.name)


def error_bound(x: Floats, weight: Floats, quantized: bool) -> NDArray[np.float64]:
    """Half a step of each block's activations times the weights that they meet, and what fp32 sums may lose."""
    sizes = np.abs(weight).astype(np.float64)
    bound = 1e-5 * (np.abs(x).astype(np.float64) @ sizes.T)
    if quantized:
        step = np.abs(x.reshape(len(x), -1, 32)).max(-1) / 127
        bound += (0.5 + 1e-4) * step @ sizes.reshape(len(weight), -1, 32).sum(-1).T
    return bound


@each_format
@settings(max_examples=8, deadline=None)
@given(n_out=st.integers(1, 70), units=st.integers(1, 3), rows=st.integers(1, 70), seed=st.integers(0, 9))
def test_products_are_those_of_the_decoded_weights(
    kind: GgmlType, n_out: int, units: int, rows: int, seed: int
) -> None:
    n_in = max(32, kind.block_size) * units
    stored, x = blocks(kind, n_out, n_in, seed), normal(rows, n_in, seed=seed + 1)
    weight = decoded(kind, stored)
    packed = matrix.pack(pool(), kind, stored, n_in)
    assert np.array_equal(matrix.decode(pool(), packed), weight)
    exact = x.astype(np.float64) @ weight.astype(np.float64).T
    excess = np.abs(matrix.matmul(pool(), packed, x) - exact) - error_bound(x, weight, kind in QUANTIZED)
    assert excess.max() <= 0


def modelled(kind: GgmlType, stored: NDArray[np.uint8], x: Floats) -> Floats:
    """Integer dot products, then one fma a block (two with a minimum, or with scales for halves of a block)."""
    weight, one = decoded(kind, stored), 32
    codes, x_scale = quantized_rows(x)
    groups = weight.reshape(len(weight), -1, 32)
    scale, minimum = fields(kind, stored)
    out = np.zeros((len(x), len(weight)), np.float32)
    for block in range(groups.shape[1]):
        halves = scale.shape[1] // groups.shape[1]
        for half in range(halves):
            part = slice(half * one // halves, (half + 1) * one // halves)
            s = scale[:, block * halves + half]
            low = 0 if minimum is None else minimum[:, block, None]
            ints = np.rint((groups[:, block, part].astype(np.float64) - low) / s[:, None].astype(np.float64))
            dots = (codes[:, block, part] @ ints.astype(np.int64).T).astype(np.float32)
            out = fma(s[None] * x_scale[:, block, None], dots, out)
        if minimum is not None:
            sums = x_scale[:, block] * codes[:, block].sum(-1).astype(np.float32)
            out = fma(minimum[None, :, block], sums[:, None], out)
    return out


def fields(kind: GgmlType, stored: NDArray[np.uint8]) -> tuple[Floats, Floats | None]:
    """Scales (one a block, or two) and minima of every row, as fp32."""
    raw = stored.reshape(len(stored), -1, kind.type_size)

    def half(at: int) -> Floats:
        return raw[..., at : at + 2].copy().view(np.float16)[..., 0].astype(np.float32)

    if kind is GgmlType.Q6_K:
        return (half(208)[..., None] * raw[..., 192:208].view(np.int8)).reshape(len(stored), -1), None
    if kind not in (GgmlType.Q4_K, GgmlType.Q5_K):
        return half(0), half(2) if kind in (GgmlType.Q4_1, GgmlType.Q5_1) else None
    p = raw[..., 4:16].astype(np.int64)
    low, middle, high = p[..., :4], p[..., 4:8], p[..., 8:]
    scales = np.concatenate([low & 63, (high & 15) | (low >> 6) << 4], -1)
    minima = np.concatenate([middle & 63, (high >> 4) | (middle >> 6) << 4], -1)
    flat = (len(stored), -1)
    return (half(0)[..., None] * scales).astype(np.float32).reshape(flat), (-half(2)[..., None] * minima).astype(
        np.float32
    ).reshape(flat)


@pytest.mark.parametrize("isa", ABLE)
@pytest.mark.parametrize("kind", QUANTIZED, ids=lambda kind: kind.name)
def test_quantized_products_are_bit_for_bit_those_of_the_model(kind: GgmlType, isa: str) -> None:
    n_in = 512
    stored, x = blocks(kind, 19, n_in), normal(11, n_in, seed=1)
    stored_scale = fields(kind, stored)[0]
    assert np.count_nonzero(stored_scale == 0) < stored_scale.size // 8  # or the model would divide by too many zeros
    with np.errstate(invalid="ignore", divide="ignore"):
        want = modelled(kind, stored, x)
    got = matrix.matmul(pool(isa=isa), matrix.pack(pool(isa=isa), kind, stored, n_in), x)
    whole = np.isfinite(want).all(0) & (stored_scale != 0).all(1)
    assert whole.sum() > 4
    assert np.array_equal(got[:, whole], want[:, whole])


@each_format
def test_a_row_is_the_same_in_every_batch_on_every_thread_and_instruction_set(kind: GgmlType) -> None:
    n_in, n_out = 512, 75
    stored, x = blocks(kind, n_out, n_in), normal(70, n_in, seed=1)
    whole = matrix.matmul(pool(), matrix.pack(pool(), kind, stored, n_in), x)
    for isa in ABLE:
        for threads in (1, 3):
            packed = matrix.pack(pool(threads, isa), kind, stored, n_in)
            for rows in (1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 70):
                part = matrix.matmul(pool(threads, isa), packed, x[70 - rows :])
                assert np.array_equal(part, whole[70 - rows :]), (isa, threads, rows)


@pytest.mark.parametrize("kind", [GgmlType.Q4_1, GgmlType.F32, GgmlType.F16], ids=lambda kind: kind.name)
def test_bias_and_residual_are_added_and_nothing_else_is_written(kind: GgmlType) -> None:
    packed = matrix.pack(pool(), kind, blocks(kind, 37, 64), 64)
    x, bias, room = normal(9, 64), normal(37, seed=2), normal(9, 50, seed=3)
    plain, before = matrix.matmul(pool(), packed, x), room.copy()
    prepared = matrix.prepare(pool(), kind, x)
    out = room[:, 5:42]
    pool().run([matrix.Call("bst_matmul", matrix.matmul_args(packed, prepared, out, bias, out))])
    assert np.array_equal(out, plain + bias + before[:, 5:42])
    assert np.array_equal(room[:, :5], before[:, :5]) and np.array_equal(room[:, 42:], before[:, 42:])


@pytest.mark.parametrize("kind", [GgmlType.Q4_1, GgmlType.F32], ids=lambda kind: kind.name)
def test_rows_can_be_gathered(kind: GgmlType) -> None:
    packed = matrix.pack(pool(), kind, blocks(kind, 24, 96), 96)
    x, rows = normal(6, 96), np.array([5, 0, 0, 3, 2, 5, 1, 4, 4], np.int32)
    out = np.empty((9, 24), np.float32)
    pool().run([matrix.Call("bst_matmul", matrix.matmul_args(packed, matrix.prepare(pool(), kind, x, rows), out))])
    assert np.array_equal(out, matrix.matmul(pool(), packed, x)[rows])


@pytest.mark.parametrize("n_in", [1, 7, 100, 129])
def test_float_rows_may_have_any_length(n_in: int) -> None:
    stored, x = blocks(GgmlType.BF16, 21, n_in), normal(13, n_in, seed=1)
    got = matrix.matmul(pool(), matrix.pack(pool(), GgmlType.BF16, stored, n_in), x)
    np.testing.assert_allclose(got, x @ decoded(GgmlType.BF16, stored).T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("isa", ABLE)
def test_what_is_not_finite_stays_so(poison: float, isa: str) -> None:
    x = normal(2, 64)
    x[1, 40] = poison
    packed = matrix.pack(pool(isa=isa), GgmlType.Q8_0, blocks(GgmlType.Q8_0, 9, 64), 64)
    got = matrix.matmul(pool(isa=isa), packed, x)
    assert np.isfinite(got[0]).all() and np.isnan(got[1]).all()


def test_tiny_and_zero_activations_give_zero() -> None:
    x = np.zeros((2, 64), np.float32)
    x[1] = 1e-38
    packed = matrix.pack(pool(), GgmlType.Q4_1, blocks(GgmlType.Q4_1, 9, 64), 64)
    assert not matrix.matmul(pool(), packed, x).any()


@pytest.mark.parametrize(("kind", "steps"), [(GgmlType.Q8_0, 254), (GgmlType.Q4_1, 15)], ids=["int8", "int4"])
def test_weights_quantized_while_loading_are_half_a_step_away(kind: GgmlType, steps: int) -> None:
    weight = normal(33, 160)
    weight[3] = 0.25
    found = decoded(kind, matrix.quantize(pool(), kind, weight)).reshape(-1, 32)
    groups = weight.reshape(-1, 32)
    size = np.abs(groups).max(-1)
    width = np.where(kind is GgmlType.Q8_0, 2 * size, groups.max(-1) - groups.min(-1))
    assert (np.abs(found - groups).max(-1) <= width / steps / 2 + size / 500).all()


@pytest.mark.parametrize("kind", matrix.LOADABLE, ids=lambda kind: kind.name)
def test_weights_that_are_not_numbers_do_not_become_some(kind: GgmlType) -> None:
    weight = normal(2, 32)
    weight[1, 7] = np.nan
    found = decoded(kind, matrix.quantize(pool(), kind, weight))
    assert np.isfinite(found[0]).all() and np.isnan(found[1]).any()


def test_ids_choose_rows_and_other_ids_are_refused() -> None:
    stored = blocks(GgmlType.Q6_K, 40, 256)
    packed = matrix.pack(pool(), GgmlType.Q6_K, stored, 256)
    ids = np.array([39, 0, 17, 17])
    assert np.array_equal(matrix.decode(pool(), packed, ids), decoded(GgmlType.Q6_K, stored)[ids])
    with pytest.raises(UsageError, match="no such row"):
        matrix.decode(pool(), packed, np.array([40]))


@pytest.mark.parametrize(("kind", "n_in"), [(GgmlType.Q4_0, 48), (GgmlType.Q6_K, 128), (GgmlType.Q2_K, 256)])
def test_rows_that_cannot_be_packed_are_refused(kind: GgmlType, n_in: int) -> None:
    with pytest.raises(UsageError, match="cannot be packed"):
        matrix.pack(pool(), kind, np.zeros((4, 84), np.uint8), n_in)
