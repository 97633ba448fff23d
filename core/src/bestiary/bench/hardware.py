"""What the machine can do, through torch, in the same run as the measurement it is compared with.

Decoding is bounded by how fast weights are read, a prompt by how fast matrices are multiplied.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

_READ_BYTES = (256 << 20, 512 << 20)
"""Sizes read on a CPU, far beyond any last-level cache."""
_COPY_BYTES = 1 << 30
_REPEATS = 7


@dataclass(frozen=True, slots=True)
class Hardware:
    """Rates of one device.

    Attributes:
        name: the processor's, as it calls itself. threads: torch's, on a CPU.
        bytes_per_s: the fastest streaming read on a CPU; on a GPU a copy, its reads and writes counted.
        flops: of a square matrix product in `gemm_dtype`, two a multiplication.
        how: what gave `bytes_per_s`, and the product's size.
    """

    device: str
    name: str
    threads: int | None
    bytes_per_s: float
    flops: float
    gemm_dtype: str
    how: str


def measure_hardware(device: str, dtype: torch.dtype) -> Hardware:
    """Measure `device` in under three seconds; on a GPU the product is in `dtype`."""
    if device == "cpu":
        bytes_per_s, how = read_bandwidth()
        flops = gemm_flops(2048, torch.float32, device)
        return Hardware(
            device, cpu_name(), torch.get_num_threads(), bytes_per_s, flops, "float32", f"{how}; 2048³ product"
        )
    bytes_per_s = copy_bandwidth(device)
    flops = gemm_flops(8192, dtype, device)
    name = torch.cuda.get_device_name(device)
    return Hardware(
        device, name, None, bytes_per_s, flops, str(dtype).removeprefix("torch."), "copy of 1 GiB; 8192³ product"
    )


def read_bandwidth(sizes: tuple[int, ...] = _READ_BYTES, repeats: int = _REPEATS) -> tuple[float, str]:
    """The fastest of torch's ways to read a large fp32 buffer once: (bytes/s, its name and size)."""
    found: dict[str, float] = {}
    for size in sizes:
        buffer = torch.ones(size // 4)
        matrix, vector = buffer.view(-1, 1024), torch.ones(1024)
        ways: dict[str, Callable[[], object]] = {
            "sum": buffer.sum,
            "dot": lambda flat=buffer: torch.dot(flat[: len(flat) // 2], flat[len(flat) // 2 :]),  # type: ignore[misc]
            "mv": lambda rows=matrix, by=vector: torch.mv(rows, by),  # type: ignore[misc]
            "amax": buffer.amax,
        }
        for name, read in ways.items():
            found[f"{name} of {size >> 20} MiB"] = size / _median_seconds(read, "cpu", repeats)
    best = max(found, key=found.__getitem__)
    return found[best], best


def copy_bandwidth(device: str, size: int = _COPY_BYTES, repeats: int = _REPEATS) -> float:
    """Bytes read and written a second by a copy within the device's memory."""
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    return 2 * size / _median_seconds(lambda: target.copy_(source), device, repeats)


def gemm_flops(size: int, dtype: torch.dtype, device: str, repeats: int = _REPEATS) -> float:
    """Operations a second of a ``size³`` product of random matrices."""
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / _median_seconds(lambda: left @ right, device, repeats)


def cpu_name() -> str:
    """The model name of the first processor; the architecture where the system does not tell."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _median_seconds(work: Callable[[], object], device: str, repeats: int) -> float:
    """After one call that does not count."""
    seconds = []
    for _ in range(repeats + 1):
        wait(device)
        start = time.perf_counter()
        work()
        wait(device)
        seconds.append(time.perf_counter() - start)
    return median(seconds[1:])


def wait(device: str) -> None:
    """Until the device has done what it was given; a CPU has."""
    if device != "cpu":
        torch.cuda.synchronize(device)
