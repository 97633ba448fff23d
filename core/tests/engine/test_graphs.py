"""Which recorder an engine's decode steps have, or why none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from bestiary.engine.graphs import choose_recorder
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
