"""A layer launches in a decode step what it must, and nothing between."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).with_name("launches.py")
ATTENTION = ["_norm", "linear", "_rotate", "attend_tile", "linear"]
DENSE = [*ATTENTION, "_norm", "linear", "_activate", "linear"]
EXPERTS = [*ATTENTION, "_norm", "linear", "_route", "_sort", "_gate_up", "_down", "_combine"]
INT4 = ["_norm", "_linear_grouped", "_rotate", "attend_tile", "_linear_grouped", "_norm", "linear", "_route", "_sort",
        "_experts", "_activate", "_experts", "_combine"]  # fmt: skip
BLOOM = ["_norm", "linear", "_write", "attend_tile", "linear", "add", "_norm", "linear", "_activate", "linear", "add"]
ALONE = {"linear": "_product_of_one"}
"""What one row takes instead."""


def test_launches_of_a_layer() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-W", "ignore", str(PROGRAM)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    wanted = {"mistral": DENSE, "qwen3": DENSE, "qwen3_moe": EXPERTS, "qwen3_moe in int4": INT4, "bloom": BLOOM}
    for name, launches in wanted.items():
        assert found[name]["2"] == launches, name
        alone = [ALONE.get(each, each) for each in launches if each != "_sort"]
        assert found[name]["1"] == alone, name
    assert found.keys() == wanted.keys()
