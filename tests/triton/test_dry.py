"""Kernels compile for what they are really launched with, and their launches are ones that a GPU takes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("dry.py")


def require_launchable(*options: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", str(PROGRAM), *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_common_launches() -> None:
    require_launchable("--few")


@pytest.mark.full
def test_all_launches() -> None:
    require_launchable()
