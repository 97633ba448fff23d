"""Few rows times codes: decoded numbers do not pass through shared memory, counted where launches are emulated."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import emulated
import pytest
import torch
from torch import Tensor

from bestiary.api.ggml_types import GgmlType
from bestiary.nn.ops import gguf
from bestiary.nn.ops.gguf import BlockRows
from bestiary.nn.triton import dequant, grouped, planes

WIDTH, DEPTH = 64, 4096
BYTES_A_PASS = 14.9
"""What an H100 reads, 3.35 TB/s, while each of 132 multiprocessors passes shared memory once, at 1.7 GHz."""
IN_PLANES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q6_K", "IQ4_NL")


@pytest.fixture(autouse=True)
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if emulated.HOW != "sm_90":
        pytest.skip("launches are counted as on an H100")
    monkeypatch.setattr(emulated, "counting", True)
    monkeypatch.setattr(gguf.embedding_gguf, "active", planes.embedding_gguf)
    emulated.counted.clear()
    yield
    emulated.counted.clear()
    emulated.each_counted.clear()


def stay(kernel: str, weight: Tensor, rows: int, call: Callable[[], object]) -> None:
    """Whether shared memory is passed no more often than there is time for while the weight is read; sixteen rows are
    themselves a half of what passes."""
    call()
    passed = emulated.counted[kernel]["shared"] * BYTES_A_PASS / weight.nbytes
    assert 0 < passed < (1.0 if rows == 1 else 1.25)


@pytest.mark.parametrize("rows", [1, 16])
@pytest.mark.parametrize("name", ["int8", "fp8", "int4", "codebook"])
def test_codes(name: str, rows: int) -> None:
    x, scale = torch.ones(rows, DEPTH, dtype=torch.bfloat16), torch.ones(WIDTH, DEPTH // 128)
    codes = torch.zeros(WIDTH, DEPTH if name in ("int8", "fp8") else DEPTH // 2, dtype=torch.uint8)
    calls: dict[str, Callable[[], object]] = {
        "int8": lambda: grouped.linear_int8(x, codes.view(torch.int8), scale[:, 0]),
        "fp8": lambda: grouped.linear_fp8(x, codes.view(torch.float8_e4m3fn), scale, 128),
        "int4": lambda: grouped.linear_int4(x, codes, scale, scale.byte(), 128),
        "codebook": lambda: grouped.linear_codebook(x, codes, scale, torch.ones(16), 128),
    }
    stay("_linear_grouped", codes, rows, calls[name])


@pytest.mark.parametrize("rows", [1, 16])
@pytest.mark.parametrize("name", [*IN_PLANES, "Q4_K", "Q5_K"])
def test_blocks(name: str, rows: int) -> None:
    kind, x = GgmlType[name], torch.ones(rows, DEPTH, dtype=torch.bfloat16)
    size = DEPTH // kind.block_size * kind.type_size
    run, blocks = [BlockRows(kind, 0, WIDTH, size)], torch.zeros(WIDTH, size, dtype=torch.uint8)
    packed = planes.pack_gguf(blocks, run)
    assert (packed is not None) is (name in IN_PLANES)
    stay("_linear_gguf", blocks, rows, lambda: dequant.linear_gguf(x, blocks if packed is None else packed, run))
