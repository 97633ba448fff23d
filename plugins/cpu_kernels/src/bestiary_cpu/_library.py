"""Which of the shared objects beside this file runs here."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from bestiary.api.errors import BrokenPlugin, UsageError

from ._abi import ABI, declare

logger = logging.getLogger("bestiary")

ISAS = ("scalar", "avx2", "avx512")
"""Instruction sets by the processor level that they need (`bst_cpu_level`)."""
VARIABLE = "BESTIARY_CPU_ISA"


@dataclass(frozen=True, slots=True)
class Library:
    """One loaded shared object.

    Attributes:
        isa: the instruction set it was compiled for. lanes: rows of a packed panel.
        native: the object; its functions are those of `native/bestiary_cpu.h`.
    """

    isa: str
    lanes: int
    path: Path
    native: ctypes.CDLL

    def __str__(self) -> str:
        return f"bestiary_cpu ({self.isa})"

    @property
    def digest(self) -> str:
        """SHA-256 of the object's file: what it packs, only a library of the same digest is sure to read."""
        return _digest(self.path)


@functools.cache
def library(isa: str | None = None) -> Library:
    """The version for `isa`; else for the one in ``BESTIARY_CPU_ISA``; else the fastest that this processor can run.

    Raises:
        UsageError: the processor cannot run the one wanted. BrokenPlugin: the installation lacks it, or has that of
            another version.
    """
    level = _load("scalar").native.bst_cpu_level()
    able = ISAS[: level + 1]
    wanted = isa or os.environ.get(VARIABLE)
    if not wanted:
        present = [name for name in able if _path(name) is not None]
        return _load(present[-1])
    if wanted not in able:
        raise UsageError(
            "this processor cannot run these kernels",
            field="isa" if isa else VARIABLE, value=wanted, limit=f"one of {', '.join(able)}",
        )  # fmt: skip
    return _load(wanted)


@functools.cache
def why_not() -> str | None:
    """None where a library can be loaded; otherwise why not, which is said once."""
    try:
        library()
    except BrokenPlugin as error:
        logger.warning("native kernels are not used, torch computes: %s", error.message)
        return error.message
    return None


def _path(isa: str) -> Path | None:
    """Where the object lies; an editable installation keeps it apart from the sources."""
    suffix = "dylib" if sys.platform == "darwin" else "so"
    places = sys.modules[__package__].__path__
    found = (Path(place) / f"libbestiary_cpu_{isa}.{suffix}" for place in places)
    return next((path for path in found if path.is_file()), None)


@functools.cache
def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@functools.cache
def _load(isa: str) -> Library:
    path = _path(isa)
    fix = "pip install --force-reinstall bestiary-cpu"
    if path is None:
        raise BrokenPlugin(f"bestiary-cpu has no library for {isa}", field="bestiary-cpu", value=isa, fix=fix)
    try:
        native = declare(ctypes.CDLL(str(path)))
    except (OSError, AttributeError) as cause:
        raise BrokenPlugin(f"{path.name} cannot be loaded: {cause}", field="bestiary-cpu", fix=fix) from cause
    if native.bst_abi() != ABI:
        raise BrokenPlugin(
            f"{path.name} is of another version", field="bestiary-cpu", value=native.bst_abi(), limit=ABI, fix=fix
        )
    return Library(native.bst_isa().decode(), native.bst_lanes(), path, native)
