"""Kernels launched where there is no GPU: compiled as for one, and their PTX run on a CPU by the machine in `ptx/`.

    BESTIARY_TRITON=sm_90             as an H100 would run them (the default)
    BESTIARY_TRITON=sm_80             as an A100
    BESTIARY_TRITON=sm_90-backwards   programs and warps in the opposite order, which must not matter
    BESTIARY_TRITON=interpreted       not compiled: by Triton's interpreter

`start` makes it so for a process. A launch that touches memory of no tensor it was given, or reads what somebody else
may still write, is an error, or reads NaN; see `ptx/machine.h`.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import struct
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from ctypes import c_char_p, c_int, c_uint32, c_uint64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any
from unittest import SkipTest

import torch
from filelock import FileLock
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler.errors import CompilationError
from triton.runtime import driver
from triton.runtime.jit import JITFunction

HOW = os.environ.get("BESTIARY_TRITON", "sm_90")
SOURCES = Path(__file__).with_name("ptx")
MULTIPROCESSORS = 132
"""Of an H100."""
COUNTED = ("instructions", "read", "written", "sectors_read", "sectors_written", "shared", "shared_least", "products")
"""What `Counts` in `ptx/machine.h` has."""

programs_meet = False
"""Whether programs of a launch may write the same memory: rows that nobody asked for all write the same places."""
counting = False
"""Whether launches are counted, which takes longer than many of them."""
counted: dict[str, Counter[str]] = {}
"""What the launches of each kernel came to, and how many there were."""
each_counted: dict[str, dict[tuple[str, str], Counter[str]]] = {}
"""The same of each of a kernel's instructions, by its text and the line of source it comes from."""
_compiling: Callable[..., Any] = JITFunction.run
_programs: dict[str, int] = {}


def interpreted() -> bool:
    return HOW == "interpreted"


def examples(count: int) -> int:
    """How many examples of Hypothesis a test tries that would like to have `count`: the interpreter is slow."""
    return max(3, count // 3) if interpreted() else count


def why_not() -> str | None:
    """Why this machine cannot emulate one."""
    return None if _compiler() else "NO C++ COMPILER HERE: kernels cannot be run without a GPU"


def start() -> None:
    """From now on, launches are emulated, as of the device that `HOW` names; not where kernels are interpreted."""
    if interpreted():
        return
    name, _, order = HOW.removeprefix("sm_").partition("-")
    if name not in ("80", "90") or order not in ("", "backwards"):
        raise ValueError(f"BESTIARY_TRITON={HOW}: choose sm_80, sm_90, sm_80-backwards, sm_90-backwards or interpreted")
    from bestiary.nn.triton import attend, available  # kernels, which may have to be imported interpreted

    driver.set_active(Device(int(name)))
    knobs.runtime.add_stages_inspection_hook = _no_machine_code
    JITFunction.run = _launch
    available.capability_of = lambda device: int(name)
    attend._multiprocessors = lambda device: MULTIPROCESSORS


def start_program() -> None:
    """The same in a process in which engines choose kernels on a CPU."""
    from bestiary.nn.triton import available

    start()
    available.interpreted = lambda: True


def _no_machine_code(backend: Any = None, stages: Any = None, *others: Any) -> tuple[str, str] | None:
    """As Triton's hook: without arguments what tells such compilations from others, otherwise to change their stages.
    PTX is what is run, and to make more of it takes a sixth of the time."""
    if stages is None:
        return "without machine code", "without machine code"
    stages["cubin"] = lambda ptx, metadata: b""
    return None


class Device:
    """What Triton asks of a driver when it compiles."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def _launch(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
    try:
        made = _compiling(self, *args, grid=grid, warmup=True, **options)
    except CompilationError as error:
        if "fp8e4nv not supported" in str(error):
            raise SkipTest("this GPU knows no fp8 (e4m3)") from error
        raise
    if warmup:
        return made
    values = {each.name: each.default for each in self.params if each.has_default}
    values |= dict(zip(self.arg_names, args, strict=False)) | {n: v for n, v in options.items() if n in self.arg_names}
    sizes = (*(grid(values) if callable(grid) else grid), 1, 1)[:3]
    emulate(made, values, sizes)
    if counting:
        _count(self.__name__, made.asm["ptx"])
    return made


def _count(kernel: str, ptx: str) -> None:
    here, all_of = each_counted.setdefault(kernel, {}), counted.setdefault(kernel, Counter())
    for instruction, found in counts_of(ptx):
        here.setdefault(instruction, Counter()).update(found)
        all_of.update(found)
    all_of["launches"] += 1


def emulate(made: Any, values: Mapping[str, Any], grid: tuple[int, ...]) -> None:
    """Run a compiled kernel on its arguments by name."""
    kinds = made.src.signature
    given = [_bits(kind, values[name]) for name, kind in kinds.items() if kind != "constexpr"] + [0, 0]
    run(made.asm["ptx"], grid, made.metadata.num_warps, made.metadata.shared, given, values.values())


def run(ptx: str, grid: tuple[int, ...], warps: int, shared: int, given: list[int], tensors: Iterable[Any]) -> None:
    """Run a program with parameters `given`, which may touch the memory of those `tensors` that are tensors."""
    program, said = _loaded(ptx), ctypes.create_string_buffer(4000)
    storages = [each.untyped_storage() for each in tensors if isinstance(each, torch.Tensor)]
    ranges = [at for each in storages if each.nbytes() for at in (each.data_ptr(), each.data_ptr() + each.nbytes())]
    failed = _machine().ptx_run(
        program, (c_uint32 * 3)(*grid), warps, shared, HOW.endswith("backwards"), programs_meet,
        (c_uint64 * len(given))(*given), len(given), (c_uint64 * len(ranges))(*ranges), len(ranges) // 2, said,
        len(said),
    )  # fmt: skip
    if failed:
        raise RuntimeError(said.value.decode())


def counts_of(ptx: str) -> Iterator[tuple[tuple[str, str], dict[str, int]]]:
    """What each instruction came to when a program was last run."""
    machine, program = _machine(), _loaded(ptx)
    counts = (c_uint64 * (len(COUNTED) * machine.ptx_size(program)))()
    machine.ptx_counts(program, counts)
    for at in range(machine.ptx_size(program)):
        text, where = (machine.ptx_text(program, at, which).decode() for which in (0, 1))
        yield (text, where), dict(zip(COUNTED, counts[at * len(COUNTED) :], strict=False))


def _loaded(ptx: str) -> int:
    if ptx not in _programs:
        said = ctypes.create_string_buffer(4000)
        loaded = _machine().ptx_load(ptx.encode(), said, len(said))
        if not loaded:
            raise RuntimeError(said.value.decode())
        _programs[ptx] = loaded
    return _programs[ptx]


def _bits(kind: str, value: Any) -> int:
    """A parameter as a register has it."""
    if kind.startswith("*"):
        return int(value.data_ptr())
    if kind == "fp32":
        return int(struct.unpack("<I", struct.pack("<f", value))[0])
    if kind[0] in "iu":
        return int(value) & (1 << 64) - 1
    raise ValueError(f"a parameter of type {kind} is not known")


def _compiler() -> str | None:
    return next((found for name in ("c++", "g++", "clang++") if (found := shutil.which(name))), None)


def compiled(name: str, folder: Path, *options: str) -> Path:
    """The library of a folder's C++, compiled when that or the options have changed."""
    sources = sorted(folder.glob("*.cpp"))
    text = b"".join(each.read_bytes() for each in sorted(folder.glob("*.h")) + sources) + repr(options).encode()
    built = folder / f"{name}-{hashlib.sha256(text).hexdigest()[:16]}.so"
    with FileLock(folder / ".lock"):
        if not built.exists():
            for old in folder.glob(f"{name}-*.so"):
                old.unlink()
            unfinished = built.with_suffix(".new")
            command = [str(_compiler()), "-std=c++20", "-fPIC", "-shared", *map(str, sources), *options]
            subprocess.run([*command, "-o", str(unfinished)], check=True)
            unfinished.rename(built)
    return built


@cache
def _machine() -> Any:
    """The machine, compiled when its source has changed."""
    machine = ctypes.CDLL(str(compiled("machine", SOURCES, "-O2", "-ffp-contract=off")))
    machine.ptx_load.restype, machine.ptx_load.argtypes = c_void_p, [c_char_p, c_char_p, c_int]
    machine.ptx_run.argtypes = [
        c_void_p, c_void_p, c_uint32, c_uint32, c_int, c_int, c_void_p, c_int, c_void_p, c_int, c_char_p, c_int,
    ]  # fmt: skip
    machine.ptx_counts.argtypes, machine.ptx_counts.restype = [c_void_p, c_void_p], None
    machine.ptx_text.argtypes, machine.ptx_text.restype = [c_void_p, c_int, c_int], c_char_p
    machine.ptx_size.argtypes = [c_void_p]
    return machine
