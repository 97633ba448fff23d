"""`native`: decode steps as programs of this package's pool."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from bestiary.nn.ops.registry import Target

from . import _library
from .arena import Arena
from .program import Program, Results
from .recorder import NoLooking, Recorder
from .runtime import description, runtime


class NativeStepRecorder:
    """As `bestiary.nn.graphs.StepRecorder`. Owns the memory that its steps share."""

    name = "native"

    def __init__(self) -> None:
        self.arena = Arena()

    @staticmethod
    def why_not(target: Target) -> str | None:
        return _library.why_not() if target.device == "cpu" else "for CPUs"

    @staticmethod
    def describe() -> Mapping[str, str | int]:
        return description()

    def record(self, step: Callable[[], Results]) -> tuple[Results, Callable[[], Results]]:
        here, recorder = runtime(), Recorder(self.arena)
        here.recorder = recorder
        try:
            with NoLooking(), recorder:
                results = step()
        finally:
            here.recorder = None
        return results, Program(here, recorder, results)
