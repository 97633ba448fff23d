"""Recorder "cuda_graphs": decode steps as CUDA graphs, one launch a step instead of one a kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from bestiary.nn.graphs import NotRecordable, Results
from bestiary.nn.ops.registry import Target

_SMALL = (1, 2, 4)
_STEPS = ((128, 8), (512, 32))


class CudaGraphs:
    """Captures steps into graphs that share one pool of memory: they run one at a time.

    A graph has the addresses of its first run and a fixed number of rows, so steps are padded to few sizes (`padded`).
    A step is run once before it is captured, on the stream of the capture: kernels are compiled, and libraries take
    their workspaces, outside. There is one such stream, since cuBLAS keeps a workspace for each that it was called on.
    """

    name = "cuda_graphs"

    @staticmethod
    def why_not(target: Target) -> str | None:
        return None if target.device == "cuda" else "for CUDA"

    def __init__(self) -> None:
        self._pool: Any = None
        self._aside: Any = None

    @staticmethod
    def padded(rows: int) -> int:
        """The size of step that so many rows are computed in: 1, 2, 4, multiples of 8 up to 128, of 32 up to 512, and
        of 128 beyond."""
        for size in _SMALL:
            if rows <= size:
                return size
        step = next((step for most, step in _STEPS if rows <= most), 128)
        return -(-rows // step) * step

    def record(self, step: Callable[[], Results]) -> tuple[Results, Callable[[], Results]]:
        """As `StepRecorder.record`."""
        return self.record_together(step, lambda recorded: recorded)

    def record_together(
        self, step: Callable[[], Results], agreed: Callable[[bool], bool]
    ) -> tuple[Results, Callable[[], Results]]:
        """As `Together.record_together`. NCCL's collectives are captured with the rest; its communicators are made in
        the run before, since they cannot be while a graph is captured."""
        if self._aside is None:
            self._pool, self._aside = torch.cuda.graph_pool_handle(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        before = torch.cuda.current_stream()
        self._aside.wait_stream(before)
        with torch.cuda.stream(self._aside):
            step()
        before.wait_stream(self._aside)
        graph = torch.cuda.CUDAGraph()
        results, why = self._captured(graph, step)
        if not agreed(why is None):
            raise NotRecordable(why or "another rank cannot")

        def again() -> Results:
            graph.replay()
            return results

        return again(), again

    def _captured(self, graph: Any, step: Callable[[], Results]) -> tuple[Results, str | None]:
        """What replays of `graph` will fill; and why there is nothing, where the step waits for the device."""
        try:
            with torch.cuda.graph(graph, self._pool, self._aside, capture_error_mode="thread_local"):
                return step(), None
        except NotRecordable as error:
            return (), error.message
        except RuntimeError as error:
            if "captur" not in str(error) or isinstance(error.__context__, torch.cuda.OutOfMemoryError):
                raise
            return (), f"it waits for the device: {str(error).splitlines()[0]}"
