"""`torch.cuda` where a GPU is pretended: one queue of work (`queue_of_work.py`), whatever stream it is given on."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from queue_of_work import WORK, Graph, Waits

GIB = 1 << 30
GPUS = int(os.environ.get("BESTIARY_PRETENDED") or 1)


class Event:
    """Has happened when the copies are done that were begun before it was recorded."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._until = 0

    def record(self, stream: Any = None) -> None:
        self._until = WORK.begun

    def synchronize(self) -> None:
        WORK.done(self._until)

    def query(self) -> bool:
        self.synchronize()
        return True

    def elapsed_time(self, other: Event) -> float:
        return 1.0


class Stream:
    def __init__(self, *args: Any, **options: Any) -> None:
        pass

    def wait_stream(self, other: Any) -> None:
        pass

    def wait_event(self, event: Any) -> None:
        pass

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record()
        return event

    def synchronize(self) -> None:
        WORK.wait("a stream's synchronize")


@contextmanager
def stream(one: Any) -> Iterator[None]:
    yield


class CUDAGraph:
    def __init__(self, *args: Any, **options: Any) -> None:
        self.captured = Graph()

    def replay(self) -> None:
        self.captured.replay()


@contextmanager
def capture(
    cuda_graph: CUDAGraph, pool: Any = None, stream: Any = None, capture_error_mode: str = "global"
) -> Iterator[None]:
    """`torch.cuda.graph`. A step that waited has spoilt its capture, whose end is an error then."""
    WORK.wait("the beginning of a capture")
    WORK.graph = cuda_graph.captured
    try:
        yield
    except Waits as error:
        raise RuntimeError("CUDA error: operation failed due to a previous error during capture") from error
    finally:
        WORK.graph = None
        cuda_graph.captured.end()


def properties(device: Any = None) -> Any:
    return SimpleNamespace(
        name="NVIDIA H100 (pretended)", major=9, minor=0, multi_processor_count=132, total_memory=80 * GIB, warp_size=32
    )


FUNCTIONS: Mapping[str, Any] = {
    "_lazy_init": lambda: None, "init": lambda: None, "is_initialized": lambda: True, "is_available": lambda: True,
    "device_count": lambda: GPUS, "current_device": lambda: 0, "set_device": lambda device: None,
    "get_device_capability": lambda device=None: (9, 0), "get_device_properties": properties,
    "get_device_name": lambda device=None: properties().name, "mem_get_info": lambda device=None: (4 * GIB, 80 * GIB),
    "memory_allocated": lambda device=None: 0, "max_memory_allocated": lambda device=None: 0,
    "empty_cache": lambda: None, "default_generators": (torch.default_generator,),
    "current_stream": lambda device=None: Stream(), "default_stream": lambda device=None: Stream(),
    "Event": Event, "Stream": Stream, "stream": stream, "set_sync_debug_mode": WORK.set_mode,
    "synchronize": lambda device=None: WORK.wait("torch.cuda.synchronize"),
    "CUDAGraph": CUDAGraph, "graph": capture, "graph_pool_handle": lambda: (0, 1),
    "is_current_stream_capturing": lambda: WORK.graph is not None,
}  # fmt: skip
