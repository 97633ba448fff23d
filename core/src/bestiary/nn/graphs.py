"""Recorded steps: what a kind of device offers, so that a step that comes again costs no Python.

A recorder runs a step and notes what it does at which addresses; `replay` does the same again, on whatever numbers lie
there then. A step can be recorded where nothing in it depends on the host's numbers but its shape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from bestiary.api.errors import EngineError

from .ops.registry import Target

Results = tuple[Tensor, ...]


class NotRecordable(EngineError):
    """A step that a recorder cannot run again; the message names what it does."""


class StepRecorder(Protocol):
    """Records steps of one engine; they are run one at a time, and share memory."""

    name: str

    @staticmethod
    def why_not(target: Target) -> str | None:
        """None where steps can be recorded for `target`, otherwise the reason in a few words."""
        ...

    def record(self, step: Callable[[], Results]) -> tuple[Results, Callable[[], Results]]:
        """Run `step`; its results, and how to run it again. They are good until the next step.

        Raises:
            NotRecordable: the step has been run as far as that, and changed nothing but caches at their places.
        """
        ...


@runtime_checkable
class Together(Protocol):
    """A recorder of steps in which ranks wait for each other. All ranks record the same steps in the same order."""

    def record_together(
        self, step: Callable[[], Results], agreed: Callable[[bool], bool]
    ) -> tuple[Results, Callable[[], Results]]:
        """As `StepRecorder.record`. ``agreed(whether it is recorded here)`` is called once, when nothing of the
        recorded step has run again: it says whether all ranks have it, and where one has not, none may run it."""
        ...


@runtime_checkable
class Padding(Protocol):
    """A recorder whose steps have few sizes: others are filled up with rows that nobody asks for."""

    @staticmethod
    def padded(rows: int) -> int:
        """The size of the step in which so many rows are computed, not below `rows`."""
        ...


@runtime_checkable
class Described(Protocol):
    """A recorder that says, for people, what its steps would run on here."""

    @staticmethod
    def describe() -> Mapping[str, str | int]:
        """Facts by name, such as the instruction set and the threads. Raises what using them would raise."""
        ...


@dataclass(frozen=True, slots=True)
class KernelTime:
    """Calls of one kernel, or op, on one shape.

    Attributes:
        name, shape: for people. calls: in a step. seconds: of all of them.
        bytes: that they must read or write at least. operations: two a multiplication; 0 where only bytes count.
    """

    name: str
    shape: str
    calls: int
    seconds: float
    bytes: float
    operations: float


@runtime_checkable
class Profiled(Protocol):
    """A recorded step that can be taken apart."""

    def __call__(self) -> Results: ...

    def profile(self, seconds: float) -> Sequence[KernelTime]:
        """Run the step for some `seconds` with a stop after every kernel: what each took, by kernel and shape."""
        ...
