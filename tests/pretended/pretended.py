"""A GPU that is not there: torch's CUDA tensors, copies, graphs and collectives on a CPU, with kernels emulated.

    python tests/pretended/run.py -m gpu tests/triton/test_on_a_gpu.py

What it shows is what a GPU would not forgive: tensors of two devices in one op, a captured step that waits or has an
earlier step's numbers in it, pinned memory that is written before a copy of it was made or read before it is there,
memory that is read before it is written. Kernels are run by `tests/triton/emulated.py`, products and the like by
torch as on a CPU. It says nothing of time, and nothing of what torch's own CUDA code does.
"""

from __future__ import annotations

import ctypes
import threading
from pathlib import Path
from typing import Any

import emulated
import torch
from collectives import NCCL
from cuda_calls import FUNCTIONS
from queue_of_work import WORK
from tensors import OnDevice, Pretended, held, make_subclass
from torch.utils._python_dispatch import _disable_current_modes

HERE = Path(__file__).parent


def start() -> None:
    """From now on there is a GPU, in all threads of this process."""
    _load_guard()
    for name, value in FUNCTIONS.items():
        setattr(torch.cuda, name, value)
    torch._C._cuda_getCurrentRawStream = lambda device: 0  # bitsandbytes asks for it when it is imported
    torch.distributed.ProcessGroupNCCL = NCCL  # type: ignore[attr-defined, misc, assignment]
    torch.Tensor._make_subclass = staticmethod(make_subclass)  # type: ignore[assignment]
    _pretend()
    begin = threading.Thread.run

    def run(self: threading.Thread) -> None:
        _pretend()
        begin(self)

    threading.Thread.run = run  # type: ignore[method-assign]
    _emulate_kernels()


def _pretend() -> None:
    """From now on in this thread."""
    torch._C._set_only_lift_cpu_tensors(True)  # numbers are brought to the device where `Pretended` sees it
    Pretended().__enter__()


def _emulate_kernels() -> None:
    from triton.runtime.jit import JITFunction

    emulated.start()
    launch, emulate = JITFunction.run, emulated.emulate

    def launched(self: Any, *args: Any, **options: Any) -> Any:
        for value in (*args, *options.values()):
            if isinstance(value, torch.Tensor) and not isinstance(value, OnDevice):
                raise ValueError("Pointer argument cannot be accessed from Triton (cpu tensor?)")
        with _disable_current_modes():
            return launch(self, *map(held, args), **{name: held(value) for name, value in options.items()})

    def run(made: Any, values: Any, grid: Any) -> None:
        if WORK.graph is not None:
            for each in values.values():
                if isinstance(each, torch.Tensor):
                    WORK.graph.may_write(each)
            WORK.graph.steps.append(lambda: emulate(made, values, grid))
        emulate(made, values, grid)

    JITFunction.run, emulated.emulate, emulated.programs_meet = launched, run, True


def _load_guard() -> None:
    """Load what answers for a CUDA device."""
    torchs = Path(torch.__file__).parent
    options = (f"-DTORCH={torch.__version__}", f"-I{torchs}/include", f"-L{torchs}/lib", "-lc10")
    ctypes.CDLL(str(emulated.compiled("guard", HERE, *options)))


start()
