"""pytest in a process that has GPUs, because they are pretended (`pretended.py`): what needs a GPU, on any machine.

    python tests/pretended/run.py [--gpus N] [arguments of pytest]

Without arguments all that is marked so: an hour or two, since kernels are emulated.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent


def command(*arguments: str, gpus: int = 1) -> tuple[list[str], dict[str, str]]:
    """What is to be run, and its environment."""
    paths = os.pathsep.join(filter(None, (str(HERE), str(HERE.parent / "triton"), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": paths, "BESTIARY_PRETENDED": str(gpus), "OMP_NUM_THREADS": "1"}
    return [sys.executable, "-m", "pytest", *arguments], environment


def main(arguments: Sequence[str]) -> None:
    gpus = 1
    if arguments[:1] == ["--gpus"]:
        gpus, arguments = int(arguments[1]), arguments[2:]
    os.chdir(HERE.parent.parent)
    made, environment = command(*(arguments or ("-m", "gpu")), gpus=gpus)
    os.execvpe(made[0], made, environment)


if __name__ == "__main__":
    main(sys.argv[1:])
