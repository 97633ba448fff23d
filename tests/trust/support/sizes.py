"""How much of each case of load and leaks a tier has: the one table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

SIZES: Mapping[str, tuple[int | None, int | None, int | None]] = {
    #        fast  full    soak
    "LD1": (400, 20_000, 200_000),  # requests, by 64 clients
    "LD2": (None, 200, 1_000),  # conversations with a real model, by 8 clients
    "LD3": (1, 10, 100),  # bursts of 500 requests
    "LD4": (60, 1_000, 10_000),  # clients that leave; a fifth as many that read slowly
    "LD5": (None, None, 600),  # seconds of twice the load that there is room for
    "LK1": (600, 20_000, 200_000),  # requests of every kind
    "LK2": (120, 10_000, 50_000),  # requests of which each brings what nobody had before
    "LK2a": (None, 500, 5_000),  # adapters, each loaded, used and unloaded
    "LK3": (400, 20_000, 100_000),  # half of them given up, half of them refused
    "LK4": (2, 20, 200),  # engines in one process
    "LK4s": (1, 20, 200),  # servers, one after another
}  # fmt: skip


def sizes(case: str) -> list[Any]:
    """The sizes of a case for `parametrize`, each with its tier's mark."""
    fast, full, soak = SIZES[case]
    found = [] if fast is None else [pytest.param(fast, id=f"{fast}")]
    found += [] if full is None else [pytest.param(full, marks=pytest.mark.full, id=f"{full}")]
    return found + ([] if soak is None else [pytest.param(soak, marks=pytest.mark.soak, id=f"{soak}")])
