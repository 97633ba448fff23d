"""GGUF weights that lie in planes: packed, multiplied and looked up, against the reference on their blocks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.end_to_end.test_gguf_kept import IDS, engine, prompt_logits, write

from bestiary.api.ggml_types import GgmlType
from bestiary.nn.gguf.planes import PLANES, blocks_of, in_planes
from bestiary.nn.ops import gguf as reference
from bestiary.nn.ops.gguf import BlockRows
from bestiary.nn.ops.packed import PackedWeight
from bestiary.nn.ops.registry import Target, choose_ops
from bestiary.nn.triton import dequant, offers, planes

from .test_dequant import _blocks, _run, _x


@pytest.fixture(autouse=True)
def chosen() -> Iterator[None]:
    """Packing asks which version looks up rows."""
    offered = {"linear_gguf/triton": offers.LINEAR_GGUF, "embedding_gguf/triton": offers.EMBEDDING_GGUF}
    ops = choose_ops(Target("cpu", torch.float32), dict.fromkeys(("linear_gguf", "embedding_gguf"), "triton"), offered)
    assert "linear_gguf" not in ops.packing, "what is kept, and its dtype, would follow"
    with ops.active():
        yield


def _packed(weight: torch.Tensor, runs: list[BlockRows]) -> PackedWeight:
    made = reference.linear_gguf.pack(weight, runs)
    assert made is not None and made.nbytes == weight.nbytes
    return made


@pytest.mark.parametrize("kind", sorted(PLANES))
def test_planes_have_every_byte(kind: GgmlType) -> None:
    blocks, ids = _blocks(kind, 7, 512), torch.tensor([3, 0, 6, 3])
    assert torch.equal(blocks_of(in_planes(blocks, kind), kind, 7, ids), blocks[ids])
    assert sum(size for _, size in PLANES[kind]) == kind.type_size


@pytest.mark.parametrize("kind", sorted(PLANES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_every_number_is_the_references(kind: GgmlType, dtype: torch.dtype) -> None:
    """Bit for bit, by both tiles; an odd number of blocks a row, and rows that are no whole tile."""
    depth = 768 if kind.block_size == 256 else 288
    weight, run, x = _blocks(kind, 41, depth), [_run(kind, 41, depth)], torch.eye(depth, dtype=dtype)
    packed, wanted = _packed(weight, run), reference.linear_gguf.reference(x, weight, run)
    for rows in (slice(100, 116), slice(depth - 40, depth), slice(0, 0)):
        assert torch.equal(dequant.linear_gguf(x[rows], packed, run), wanted[rows])


def test_runs_of_several_types() -> None:
    """One in planes, one that has none, one without kernels, and one that begins where nothing wide can be read."""
    parts = [(GgmlType.Q8_0, 4), (GgmlType.Q4_K, 3), (GgmlType.Q3_K, 1), (GgmlType.Q6_K, 5)]
    runs, pieces, start = [], [], 0
    for kind, rows in parts:
        plain = kind is GgmlType.Q3_K
        pieces.append(torch.ones(110, dtype=torch.uint8) if plain else _blocks(kind, rows, 256).flatten())
        runs.append(_run(kind, rows, 256, start))
        start += pieces[-1].numel()
    x, weight, bias = _x(2, 3, 256).transpose(0, 1), torch.cat(pieces), _x(13)
    packed = _packed(weight, runs)
    assert packed.contents == {runs[0]} and packed.form == "Q8_0+Q4_K+Q3_K+Q6_K" and packed.shape_before == (13, 256)
    got = dequant.linear_gguf(x, packed, runs, bias)
    torch.testing.assert_close(got, reference.linear_gguf.reference(x, weight, runs, bias), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", [GgmlType.Q6_K, GgmlType.Q8_0])
def test_rows_are_looked_up(kind: GgmlType) -> None:
    weight, ids = _blocks(kind, 30, 256), torch.tensor([[3, 29], [0, 3]])
    wanted = reference.embedding_gguf.reference(ids, weight, kind, torch.float16)
    for table in (_packed(weight, [_run(kind, 30, 256)]), weight):
        assert torch.equal(planes.embedding_gguf(ids, table, kind, torch.float16), wanted)


def test_what_is_left_as_it_is() -> None:
    kind, run = GgmlType.Q4_0, [_run(GgmlType.Q4_0, 8, 256)]
    weight = _blocks(kind, 8, 256)
    assert planes.pack_gguf(_blocks(GgmlType.Q4_K, 8, 256), [_run(GgmlType.Q4_K, 8, 256)]) is None, (
        "blocks read as well"
    )
    assert planes.pack_gguf(torch.stack([weight, weight])[1], run) is None, "one of several experts"
    assert planes.pack_gguf(weight.to("meta"), run) is None, "nothing is added"
    assert planes.pack_gguf(_packed(weight, run), run) is None
    with choose_ops(Target("cpu", torch.float32), {}).active():
        assert planes.pack_gguf(weight, run) is None, "rows are looked up by what reads blocks only"


def test_a_model_in_planes_says_what_it_says_in_blocks(tmp_path: Path) -> None:
    path, ops = write(tmp_path / "mixed.gguf"), {"linear_gguf": "triton", "embedding_gguf": "triton"}
    plain = engine(path, quantization="gguf", kernels="torch")
    planar = engine(path, quantization="gguf", kernels="torch", ops=ops)
    weights = dict(planar.engine.executor.runner.model.named_parameters())
    packed = {name.split(".")[-2] for name, each in weights.items() if isinstance(each, PackedWeight)}
    assert packed == {"embed_tokens", "qkv_proj", "down_proj", "lm_head"}
    torch.testing.assert_close(prompt_logits(planar, IDS), prompt_logits(plain, IDS), atol=1e-4, rtol=1e-4)
