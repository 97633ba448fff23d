"""A census of a process's objects by type, and of its unfinished tasks, taken when it is sent SIGUSR1.

`install` puts this file where every interpreter of a server imports it at its start, as `sitecustomize`; `take` asks a
process and reads its answer.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

_FOLDER = "BESTIARY_CENSUS"
_SECONDS = 60.0


def install(folder: Path) -> dict[str, str]:
    """Prepare `folder`; returns the variables of a server that can be asked."""
    shutil.copy(__file__, folder / "sitecustomize.py")
    return {_FOLDER: str(folder), "PYTHONPATH": os.pathsep.join(filter(None, [str(folder), *sys.path]))}


def take(folder: Path, pid: int) -> Counter[str]:
    """How many objects of each type that can be part of a cycle a process has, and "tasks" that have not ended.

    Raises TimeoutError: it does not answer.
    """
    path = folder / str(pid)
    path.unlink(missing_ok=True)
    os.kill(pid, signal.SIGUSR1)
    deadline = time.monotonic() + _SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"process {pid} took no census")
        time.sleep(0.01)
    return Counter(json.loads(path.read_text()))


def _count() -> Counter[str]:
    gc.collect()
    objects = gc.get_objects()
    found = Counter(f"{type(each).__module__}.{type(each).__qualname__}" for each in objects)
    asyncio: Any = sys.modules.get("asyncio")
    if asyncio is not None:
        found["tasks"] = sum(isinstance(each, asyncio.Task) and not each.done() for each in objects)
    return found


def _answer(number: int, frame: object) -> None:
    path = Path(os.environ[_FOLDER]) / str(os.getpid())
    written = path.with_suffix(".new")
    written.write_text(json.dumps(_count()))
    written.replace(path)


if __name__ == "sitecustomize" and _FOLDER in os.environ:
    signal.signal(signal.SIGUSR1, _answer)
