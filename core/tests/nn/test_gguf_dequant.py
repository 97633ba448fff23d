"""Every block format against the `gguf` package's reference, bit for bit."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize as reference
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bestiary.api.errors import LoadError
from bestiary.api.ggml_types import GgmlType, type_of
from bestiary.nn.gguf import dequant
from bestiary.nn.gguf.dequant import SUPPORTED, dequantize

NOT_IN_REFERENCE = {GgmlType.F64, GgmlType.Q1_0, GgmlType.Q2_0}
COMPARED = sorted(SUPPORTED - NOT_IN_REFERENCE)
NOT_IN_FILES = {"Q8_1", "Q8_K"}
NEWER_THAN_REFERENCE = {GgmlType.Q2_0}


def same_bits(ours: torch.Tensor, theirs: NDArray[np.float32]) -> None:
    """Equal bit patterns, so that -0.0 is not 0.0; a NaN is a NaN, whatever its payload."""
    mine, expected = ours.numpy().reshape(-1), theirs.reshape(-1)
    np.testing.assert_array_equal(np.isnan(mine), np.isnan(expected))
    numbers = ~np.isnan(expected)
    np.testing.assert_array_equal(mine[numbers].view(np.uint32), expected[numbers].view(np.uint32))


def expected(data: NDArray[np.uint8], type: GgmlType) -> NDArray[np.float32]:
    with np.errstate(all="ignore"):
        return np.asarray(reference(data, GGMLQuantizationType(int(type))), dtype=np.float32)


def random_blocks(type: GgmlType, rows: int, blocks: int, seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (rows, blocks * type.type_size), dtype=np.uint8)


def test_type_table_is_the_reference_table() -> None:
    theirs = {t.name: (int(t), *sizes) for t, sizes in GGML_QUANT_SIZES.items() if t.name not in NOT_IN_FILES}
    ours = {t.name: (int(t), t.block_size, t.type_size) for t in GgmlType if t not in NEWER_THAN_REFERENCE}
    assert ours == theirs
    assert type_of(12) is GgmlType.Q4_K
    assert [type_of(n) for n in (4, 9, 15, 31, 9999, -1)] == [None] * 6


@pytest.mark.parametrize("type", COMPARED, ids=lambda t: t.name)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 3), blocks=st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_random_bytes(type: GgmlType, seed: int, rows: int, blocks: int) -> None:
    """Random bytes are random quants under random float16 scales: subnormal, infinite and NaN ones among them."""
    data = random_blocks(type, rows, blocks, seed)
    ours = dequantize(data, type, (rows, blocks * type.block_size))
    assert ours.shape == (rows, blocks * type.block_size)
    same_bits(ours, expected(data, type))


@pytest.mark.parametrize("type", COMPARED, ids=lambda t: t.name)
def test_special_scales(type: GgmlType) -> None:
    """Every 16-bit field of a block takes each special float16 in turn."""
    specials = np.array(
        [0x0000, 0x8000, 0x0001, 0x83FF, 0x7BFF, 0x7C00, 0xFC00, 0x7E00, 0x7C01, 0xFFFF], dtype=np.uint16
    )
    block = random_blocks(type, 1, 8, 5).reshape(-1)[: -(-4 // type.type_size) * type.type_size]
    places = sorted({0, 2, block.size - 4, block.size - 2})
    data = np.stack([block] * (len(places) * len(specials)))
    for row, (at, special) in enumerate(itertools.product(places, specials)):
        data[row, at : at + 2] = np.frombuffer(special.tobytes(), dtype=np.uint8)
    same_bits(dequantize(data, type, (len(data), block.size // type.type_size * type.block_size)), expected(data, type))


@pytest.mark.parametrize("byte", [0x00, 0x55, 0xAA, 0xFF])
@pytest.mark.parametrize("type", COMPARED, ids=lambda t: t.name)
def test_constant_bytes(type: GgmlType, byte: int) -> None:
    data = np.full((1, type.type_size), byte, dtype=np.uint8)
    same_bits(dequantize(data, type, (1, type.block_size)), expected(data, type))


@pytest.mark.parametrize(
    "type", [GgmlType.IQ1_S, GgmlType.IQ2_S, GgmlType.IQ3_S, GgmlType.TQ1_0, GgmlType.Q4_1], ids=str
)
def test_many_blocks_in_small_chunks(type: GgmlType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough blocks that every grid row occurs, in chunks that do not divide them."""
    monkeypatch.setattr(dequant, "_CHUNK_ELEMENTS", 7 * type.block_size)
    data = random_blocks(type, 600, 1, 11)
    same_bits(dequantize(data, type, (600, type.block_size)), expected(data, type))


def test_formats_without_reference() -> None:
    scale = np.array([-0.75], dtype=np.float16).view(np.uint8)
    quants = np.arange(16, dtype=np.uint8) * 17 + 3
    data = np.concatenate([scale, quants])
    bits = [(int(quants[j // 8]) >> (j % 8)) & 1 for j in range(128)]
    same_bits(dequantize(data, GgmlType.Q1_0, (128,)), np.array([-0.75 if b else 0.75 for b in bits], dtype=np.float32))
    pairs = [(int(quants[j // 4]) >> (2 * (j % 4))) & 3 for j in range(64)]
    same_bits(dequantize(data, GgmlType.Q2_0, (64,)), np.array([(p - 1.0) * -0.75 for p in pairs], dtype=np.float32))
    doubles = np.array([1 / 3, -0.0, 1e300, 5e-324])
    with np.errstate(over="ignore"):
        same_bits(dequantize(doubles.view(np.uint8), GgmlType.F64, (4,)), doubles.astype(np.float32))


def test_shapes() -> None:
    """Leading dimensions are rows of rows: a stack of experts keeps its shape."""
    data = random_blocks(GgmlType.Q8_0, 12, 2, 3)
    flat = dequantize(data, GgmlType.Q8_0, (12, 64))
    assert torch.equal(
        dequantize(data, GgmlType.Q8_0, (3, 4, 64)).view(torch.int32), flat.view(torch.int32).view(3, 4, 64)
    )


def test_source_may_be_read_only() -> None:
    data = random_blocks(GgmlType.Q4_0, 2, 1, 3)
    data.flags.writeable = False
    assert dequantize(data, GgmlType.Q4_0, (2, 32)).shape == (2, 32)


def test_refusals() -> None:
    with pytest.raises(LoadError, match="UNSUPPORTED_GGML_TYPE") as caught:
        dequantize(np.zeros(4, dtype=np.uint8), GgmlType.I32, (1,))
    assert "Q4_K" in str(caught.value)
    with pytest.raises(LoadError, match="36 bytes, 18 were given"):
        dequantize(np.zeros(18, dtype=np.uint8), GgmlType.Q4_0, (64,))
    with pytest.raises(LoadError, match="multiple of 32"):
        dequantize(np.zeros(18, dtype=np.uint8), GgmlType.Q4_0, (33,))
