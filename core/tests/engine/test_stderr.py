"""A process that works on, whether or not anybody reads what it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys, traceback
from bestiary.engine.stderr import never_fail_stderr
never_fail_stderr()
print("naïve \\ud800", file=sys.stderr)
try:
    1 / 0
except ZeroDivisionError:
    traceback.print_exc()
print("went on")
"""


def run(stderr: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SCRIPT]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=stderr, text=True, timeout=60, check=True)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device here")
def test_a_full_disk_is_no_error() -> None:
    with open("/dev/full", "w") as full:
        assert run(full.fileno()).stdout == "went on\n"


def test_a_reader_hears_everything() -> None:
    done = run(subprocess.PIPE)
    assert done.stdout == "went on\n"
    assert done.stderr.startswith("naïve \\ud800\nTraceback")
    assert done.stderr.endswith("ZeroDivisionError: division by zero\n")
