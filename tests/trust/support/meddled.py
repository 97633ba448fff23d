"""The `bestiary` program, meddled with by signals. Run as a script.

SIGUSR1 blocks its event loop for some seconds; SIGUSR2 sets its wall clock one hour forward, the next two hours back.
"""

from __future__ import annotations

import runpy
import signal
import sys
import time

BLOCKED_SECONDS = 3.0
_real, _jumps = time.time, [0]


def _block(number: int, frame: object) -> None:
    time.sleep(BLOCKED_SECONDS)


def _jump(number: int, frame: object) -> None:
    _jumps[0] += 1


def _time() -> float:
    return _real() + (3600 if _jumps[0] % 2 else -3600) * bool(_jumps[0])


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, _block)
    signal.signal(signal.SIGUSR2, _jump)
    time.time = _time
    sys.path.pop(0)  # this script's folder
    runpy.run_module("bestiary", run_name="__main__", alter_sys=True)
