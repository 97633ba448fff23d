"""A layer launches in a decode step what it must, and nothing between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

ATTENTION = ["_norm", "linear", "_rotate", "attend_tile", "linear"]
DENSE = [*ATTENTION, "_norm", "linear", "_activate", "linear"]
EXPERTS = [*ATTENTION, "_norm", "linear", "_route", "_sort", "_gate_up", "_down", "_combine"]
INT4 = ["_norm", "_linear_grouped", "_rotate", "attend_tile", "_linear_grouped", "_norm", "linear", "_route", "_sort",
        "_experts", "_experts", "_combine"]  # fmt: skip
BLOOM = ["_norm", "linear", "_write", "attend_tile", "linear", "add", "_norm", "linear", "_activate", "linear", "add"]
ALONE = {"linear": "_product_of_one"}
"""What one row takes instead."""


def test_launches_of_a_layer(said_by: Callable[[str], Any]) -> None:
    found = said_by("launches.py")
    wanted = {"mistral": DENSE, "qwen3": DENSE, "qwen3_moe": EXPERTS, "qwen3_moe in int4": INT4, "bloom": BLOOM}
    for name, launches in wanted.items():
        assert found[name]["2"] == launches, name
        alone = [ALONE.get(each, each) for each in launches if each != "_sort"]
        assert found[name]["1"] == alone, name
    assert found.keys() == wanted.keys()
