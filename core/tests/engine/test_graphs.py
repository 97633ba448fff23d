"""Which recorder an engine's decode steps have, or why none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from bestiary.engine.graphs import choose_recorder
from bestiary.nn.cuda.graphs import CudaGraphs
from bestiary.nn.ops.registry import Target

CPU = Target("cpu", torch.float32)


@dataclass
class Backend:
    name: str
    recordable: bool = True


class Anywhere:
    name = "anywhere"

    @staticmethod
    def why_not(target: Target) -> str | None:
        return None


class Elsewhere(Anywhere):
    name = "elsewhere"

    @staticmethod
    def why_not(target: Target) -> str | None:
        return f"not on {target.device}"


@pytest.mark.parametrize(
    ("offered", "backends", "found"),
    [
        ({"e": Elsewhere, "a": Anywhere}, [Backend("fixed")], (Anywhere, "")),
        ({}, [Backend("fixed")], (None, "no package in use offers a recorder")),
        ({"e": Elsewhere}, [Backend("fixed")], (None, "e: not on cpu")),
        ({"a": Anywhere}, [Backend("fixed"), Backend("torch", False)],
         (None, "attention by torch looks at the host's numbers")),
        ({"a": Anywhere}, [None], (None, "attention by none looks at the host's numbers")),
    ],
)  # fmt: skip
def test_choice(offered: Any, backends: Any, found: Any) -> None:
    assert choose_recorder(offered, CPU, backends) == found


def test_sizes_that_cuda_graphs_have() -> None:
    sizes = [CudaGraphs.padded(rows) for rows in range(1, 1025)]
    assert all(size >= rows for rows, size in enumerate(sizes, 1))
    assert sizes == sorted(sizes)
    assert sizes[:9] == [1, 2, 4, 4, 8, 8, 8, 8, 16]
    assert (sizes[127], sizes[128], sizes[512]) == (128, 160, 640)
    assert CudaGraphs.why_not(CPU) == "for CUDA"
