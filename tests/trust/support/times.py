"""How often a fault is tried: once on every change, ten times in full, a hundred times in soak."""

from __future__ import annotations

import pytest

TIMES = [1, pytest.param(10, marks=pytest.mark.full), pytest.param(100, marks=pytest.mark.soak)]
MORE_TIMES = [pytest.param(1, marks=pytest.mark.full), *TIMES[1:]]
"""Of what takes too long for every change."""


def shares(moments: int) -> list[object]:
    """`TIMES` divided among several moments at which a costly fault is tried."""
    full, soak = -(-10 // moments), -(-100 // moments)
    return [1, pytest.param(full, marks=pytest.mark.full), pytest.param(soak, marks=pytest.mark.soak)]
