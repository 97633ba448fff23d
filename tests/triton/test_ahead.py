"""Every variant of every kernel compiles for A100, H100 and B200, and fits them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

AHEAD = Path(__file__).with_name("ahead.py")


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_kernels_fit(capability: int) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(AHEAD), "--capability", str(capability)],
        env=environment, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
