"""Buffers that were freed are the system's again, also where glibc has learnt to keep as much."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import threading
from pathlib import Path
from bestiary.engine.heap import give_large_buffers_back

def held():
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["RssAnon"].split()[0]) << 10

def work():
    for size in (1, 4, 8, 30):
        for _ in range(3):
            [bytes(size << 20), *(b"x" * (size << 14) for _ in range(64))]

assert give_large_buffers_back()
before = held()
for _ in range(4):
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
print(held() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries do not keep them")
def test_freed_buffers_are_given_back():
    told = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=60)
    assert int(told.stdout) < 8 << 20
