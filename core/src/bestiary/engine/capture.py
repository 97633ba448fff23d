"""Decode steps of all sizes before the first request: so that none waits for one, and their memory is known."""

from __future__ import annotations

import time

from .loader.progress import load_progress, say
from .memory import CUDA_MARGIN_BYTES, free_memory
from .notices import notice
from .runner import ModelRunner


def capture_steps(runner: ModelRunner, progress: bool) -> None:
    """Record them, and say how many, how long it took, and on a GPU what they hold and what is left. A GPU with less
    left than half of the margin that the KV cache spares is named in any case."""
    device, begun = runner.device.type, time.monotonic()
    before = 0 if device == "cpu" else free_memory(device)
    with load_progress("capturing steps", enabled=progress, counted=True) as callback:
        count = runner.record_steps(callback)
    if not count:
        return
    told = f"captured decode steps of {count} sizes in {time.monotonic() - begun:.1f} s"
    if device != "cpu":
        free = free_memory(device)
        told += f"; they took {_gib(max(0, before - free))} of the GPU's memory, {_gib(free)} are free"
        if free < CUDA_MARGIN_BYTES // 2:
            notice(f"{_gib(free)} of the GPU's memory are free for prompts' activations: set a smaller "
                   "kv_cache_memory_bytes or max_num_batched_tokens if they do not suffice")  # fmt: skip
    say(told, enabled=progress)


def _gib(count: int) -> str:
    return f"{count / 1024**3:.2f} GiB"
