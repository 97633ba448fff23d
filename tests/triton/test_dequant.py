"""Products with GGUF blocks against the torch reference."""

from __future__ import annotations

import pytest
import torch
from emulated import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from bestiary.api.ggml_types import GgmlType
from bestiary.nn.ops import gguf as reference
from bestiary.nn.ops.gguf import BlockRows
from bestiary.nn.triton import dequant
from bestiary.nn.triton.gguf_blocks import FORMATS

_HALVES = {GgmlType.Q6_K: (208,), **dict.fromkeys((GgmlType.Q4_1, GgmlType.Q5_1, GgmlType.Q4_K, GgmlType.Q5_K), (0, 2))}


def _blocks(kind: GgmlType, rows: int, depth: int) -> torch.Tensor:
    """Random bytes, their fp16 factors being near 0.01."""
    count = rows * depth // kind.block_size
    generator = torch.Generator().manual_seed(int(kind))
    blocks = torch.randint(0, 256, (count, kind.type_size), dtype=torch.uint8, generator=generator)
    for at in _HALVES.get(kind, (0,)):
        factors = (torch.rand(count, 1, generator=generator) * 0.01 + 0.005).half()
        blocks[:, at : at + 2] = factors.view(torch.uint8)
    return blocks.view(rows, -1)


def _run(kind: GgmlType, rows: int, depth: int, start: int = 0) -> BlockRows:
    return BlockRows(kind, start, rows, depth // kind.block_size * kind.type_size)


def _x(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", sorted(FORMATS))
def test_every_number_of_a_block_is_the_references(kind: GgmlType) -> None:
    """An identity matrix reads the weight back, bit for bit."""
    weight, run, x = _blocks(kind, 5, 256), [_run(kind, 5, 256)], torch.eye(256)
    assert torch.equal(dequant.linear_gguf(x, weight, run), reference.linear_gguf.reference(x, weight, run))


@pytest.mark.parametrize("kind", sorted(FORMATS))
def test_few_rows_have_the_same_numbers_rounded(kind: GgmlType) -> None:
    """16 rows at a time, each warp with a part of the inputs; the last strip of them is almost empty."""
    depth = 768 if kind.block_size == 256 else 288
    weight, run = _blocks(kind, 40, depth), [_run(kind, 40, depth)]
    for at in (0, 112, depth - 16):
        x = torch.eye(depth, dtype=torch.float16)[at : at + 16]
        assert torch.equal(dequant.linear_gguf(x, weight, run), reference.linear_gguf.reference(x, weight, run))


@pytest.mark.parametrize("kind", [GgmlType.Q4_1, GgmlType.Q5_1, GgmlType.Q4_K, GgmlType.Q5_K])
def test_blocks_between_words(kind: GgmlType) -> None:
    """Blocks of whole words, behind others that are not."""
    weight = torch.cat([torch.zeros(2, dtype=torch.uint8), _blocks(kind, 5, 256).flatten()])
    x, run = torch.eye(256, dtype=torch.float16)[100:116], [_run(kind, 5, 256, 2)]
    assert torch.equal(dequant.linear_gguf(x, weight, run), reference.linear_gguf.reference(x, weight, run))


@settings(max_examples=examples(15), deadline=None)
@given(
    kind=st.sampled_from(sorted(FORMATS)), rows=st.sampled_from([0, 1, 16, 17, 70]), width=st.integers(1, 40),
    blocks=st.integers(1, 3), dtype=st.sampled_from([torch.float32, torch.float16]), has_bias=st.booleans(),
)  # fmt: skip
def test_equals_reference(
    kind: GgmlType, rows: int, width: int, blocks: int, dtype: torch.dtype, has_bias: bool
) -> None:
    depth = blocks * kind.block_size
    weight, run, x = _blocks(kind, width, depth), [_run(kind, width, depth)], _x(rows, depth).to(dtype)
    bias = _x(width).to(dtype) if has_bias else None
    wanted = reference.linear_gguf.reference(x, weight, run, bias)
    torch.testing.assert_close(dequant.linear_gguf(x, weight, run, bias), wanted, atol=2e-2, rtol=4e-3)


def test_an_exact_row_has_its_own_bits() -> None:
    weight, run, x = _blocks(GgmlType.Q4_0, 40, 96), [_run(GgmlType.Q4_0, 40, 96)], _x(70, 96)
    together = dequant.linear_gguf(x, weight, run, exact=True)
    for rows in (slice(0, 1), slice(3, 19), slice(69, 70)):
        assert torch.equal(dequant.linear_gguf(x[rows], weight, run, exact=True), together[rows])


def test_parts_of_several_types_one_without_a_decoder() -> None:
    parts = [(GgmlType.Q4_K, 3), (GgmlType.Q3_K, 2), (GgmlType.Q6_K, 4)]
    runs, pieces, start = [], [], 0
    for kind, rows in parts:
        piece = _blocks(kind, rows, 256) if kind is not GgmlType.Q3_K else torch.ones(rows, 110, dtype=torch.uint8)
        runs.append(_run(kind, rows, 256, start))
        pieces.append(piece.flatten())
        start += piece.numel()
    x, weight, bias = _x(2, 3, 256), torch.cat(pieces), _x(9)
    got = dequant.linear_gguf(x, weight, runs, bias)
    torch.testing.assert_close(got, reference.linear_gguf.reference(x, weight, runs, bias), atol=1e-3, rtol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", sorted(FORMATS))
@pytest.mark.parametrize("rows", [1, 16, 200])
def test_on_a_gpu(kind: GgmlType, rows: int) -> None:
    weight, run, x = _blocks(kind, 1000, 4096), [_run(kind, 1000, 4096)], _x(rows, 4096).bfloat16()
    wanted = reference.linear_gguf.reference(x.float(), weight, run)
    got = dequant.linear_gguf(x.cuda(), weight.cuda(), run).float().cpu()
    assert float((got - wanted).norm() / wanted.norm()) < 1e-2
