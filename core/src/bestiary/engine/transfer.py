"""Numbers between a host and its device. A host waits for a GPU wherever it looks at a number, and where it sends some
from ordinary memory: so a step looks once, and sends from memory that the GPU reads by itself.
"""

from __future__ import annotations

from itertools import accumulate

import numpy as np
import torch


def send(numbers: np.ndarray, device: torch.device) -> torch.Tensor:
    """An array on a device, in one copy that nobody waits for."""
    held = torch.from_numpy(numbers)
    return held.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else held.to(device)


def fetch(*vectors: torch.Tensor) -> list[list[float]]:
    """Vectors on the host, as Python numbers, after one wait for the device. Whole ones are exact below 2**53."""
    values: list[float] = torch.cat([each.double() for each in vectors]).tolist()
    ends = list(accumulate(len(each) for each in vectors))
    return [values[end - len(each) : end] for each, end in zip(vectors, ends, strict=True)]
