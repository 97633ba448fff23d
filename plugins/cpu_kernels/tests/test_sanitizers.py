"""The native sources under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer: `pytest -m full`."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from kernel_cases import ABLE

FOLDER = Path(__file__).resolve().parents[1]
SETS = {"scalar": [], "avx2": ["-DBST_AVX2", "-mavx2", "-mfma", "-mf16c"]}
KINDS = {"address and undefined": "address,undefined", "thread": "thread"}


@pytest.mark.full
@pytest.mark.parametrize("isa", [isa for isa in SETS if isa in ABLE])
@pytest.mark.parametrize("kind", KINDS)
def test_sanitizers_find_nothing(kind: str, isa: str, tmp_path: Path) -> None:
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler}")
    flags = ["-std=c++17", "-O1", "-g", "-ffp-contract=off", "-fno-sanitize-recover=all", f"-fsanitize={KINDS[kind]}"]
    sources = [str(path) for path in sorted((FOLDER / "native").glob("*.cpp"))]
    program = tmp_path / "driver"
    command = [compiler, *flags, *SETS[isa], f"-I{FOLDER / 'native'}", *sources]
    command += [str(FOLDER / "tests/sanitizers/driver.cpp"), "-o", str(program), "-pthread"]
    subprocess.run(command, check=True, timeout=900)
    run = subprocess.run([program], capture_output=True, text=True, timeout=900, check=False)
    assert (run.returncode, run.stdout) == (0, "done\n"), run.stderr[-8000:]
