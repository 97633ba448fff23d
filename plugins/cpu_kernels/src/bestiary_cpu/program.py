"""A recorded step, to be run again: lists of kernel calls for the pool, and calls of torch between them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence

from torch import Tensor

from bestiary.nn.graphs import KernelTime

from ._abi import Step
from .arena import Arena
from .fusion import fused
from .pool import Call, kernel_address
from .profile import profile
from .recorder import Recorder, TorchCall
from .runtime import Runtime

Results = tuple[Tensor, ...]
Segment = Callable[[], None]


class Program:
    """Runs what a recorder saw. Results lie where they lay then, until the next program of the arena runs."""

    def __init__(self, runtime: Runtime, recorder: Recorder, results: Results) -> None:
        self.runtime = runtime
        self.arena: Arena = recorder.arena
        self.kept = list(recorder.kept.values())
        self.nodes = fused(recorder.nodes)
        self.segments = self._segments()
        self.results = tuple(self.arena.lasting(each) for each in results)

    def __call__(self) -> Results:
        for segment in self.segments:
            segment()
        return self.results

    def profile(self, seconds: float) -> list[KernelTime]:
        """As `bestiary.nn.graphs.Profiled`."""
        pieces = [node if isinstance(node, TorchCall) else self._run([node]) for node in self.nodes]
        return profile(self.nodes, pieces, self._run([]), seconds, self.runtime.native)

    def _segments(self) -> list[Segment]:
        found: list[Segment] = []
        calls: list[Call] = []
        for node in self.nodes:
            if isinstance(node, TorchCall):
                if calls:
                    found.append(self._run(calls))
                    calls = []
                found.append(node)
            else:
                calls.append(node)
        if calls:
            found.append(self._run(calls))
        return found

    def _run(self, calls: Sequence[Call]) -> Segment:
        steps = (Step * len(calls))()
        for step, call in zip(steps, calls, strict=True):
            step.kernel = kernel_address(self.runtime.native, call.kernel)
            step.args, step.wait = ctypes.addressof(call.args), call.wait
        return lambda: self.runtime.pool.run_steps(steps)
