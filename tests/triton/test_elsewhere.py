"""The same tests as other GPUs run the kernels, in another order, and by Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import emulated
import pytest

FOLDER = Path(__file__).parent
QUICK = {
    "interpreted": [
        "activation", "cache", "dequant", "fp8", "grouped", "int8", "linear", "lora", "moe", "norm", "rotary",
        "routing", "sampling", "sorting", "step", "vector",
    ],
    "sm_80": ["fp8", "linear", "ptx", "rotary"],
}  # fmt: skip
ONCE = {"ahead", "dry", "elsewhere", "lanes", "launches", "on_a_gpu"}
"""What is the same everywhere, or nothing without a GPU."""
EVERY = sorted({each.stem.removeprefix("test_") for each in FOLDER.glob("test_*.py")} - ONCE)


def require(how: str, files: list[str]) -> None:
    dropped = ("PYTEST_", "TRITON_INTERPRET")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    paths = (str(FOLDER / f"test_{name}.py") for name in files)
    which = ("-m", "not gpu") if files is EVERY else ()
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *which, *paths]
    done = subprocess.run(
        command, env={**environment, "BESTIARY_TRITON": how}, capture_output=True, text=True, timeout=3000, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


once = pytest.mark.skipif(emulated.HOW != "sm_90", reason="this is elsewhere")


@once
@pytest.mark.parametrize("how", QUICK)
def test_some(how: str) -> None:
    require(how, QUICK[how])


@once
@pytest.mark.full
@pytest.mark.parametrize("how", ["interpreted", "sm_80", "sm_90-backwards"])
def test_everything(how: str) -> None:
    require(how, EVERY)
