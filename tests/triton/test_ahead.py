"""Every variant of every kernel compiles for A100, H100 and B200, and fits them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

AHEAD = Path(__file__).with_name("ahead.py")
CAPABILITIES = (80, 90, 100)


@pytest.fixture(scope="module")
def compiling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, tuple[subprocess.Popen[bytes], Path]]]:
    """All at once, each with a file for what it says: one after another, everything else would wait for them."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    folder, begun = tmp_path_factory.mktemp("ahead"), {}
    for each in CAPABILITIES:
        command, said = [sys.executable, str(AHEAD), "--capability", str(each)], folder / str(each)
        with said.open("wb") as file:
            process = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
        begun[each] = process, said
    yield begun
    for process, _ in begun.values():
        process.kill()
        process.wait()


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_kernels_fit(capability: int, compiling: dict[int, tuple[subprocess.Popen[bytes], Path]]) -> None:
    process, said = compiling[capability]
    assert process.wait(timeout=1500) == 0, said.read_text()[-6000:]
