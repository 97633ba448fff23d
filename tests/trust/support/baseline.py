"""What a process holds, from /proc: memory, descriptors, threads, children."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True, slots=True)
class Holding:
    """Of one process: open descriptors, threads, and memory of its own in bytes, swapped out or not."""

    descriptors: int
    threads: int
    memory: int

    @classmethod
    def of(cls, pid: int | None = None) -> Holding:
        folder = Path("/proc") / str(os.getpid() if pid is None else pid)
        status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines() if ":" in line)
        memory = sum(int(status.get(name, "0").split()[0]) << 10 for name in ("RssAnon", "VmSwap"))
        return cls(len(os.listdir(folder / "fd")), int(status["Threads"]), memory)


def family(pid: int | None = None) -> dict[int, str]:
    """All living descendants of a process: id → command line."""
    found = {}
    for child in psutil.Process(pid).children(recursive=True):
        try:
            if child.status() != psutil.STATUS_ZOMBIE:
                found[child.pid] = " ".join(child.cmdline())
        except psutil.NoSuchProcess:
            continue
    return found


def alive(pids: Iterable[int]) -> list[int]:
    """Those of the processes that have not ended."""
    found = []
    for pid in pids:
        try:
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                found.append(pid)
        except psutil.NoSuchProcess:
            continue
    return found
