"""Numbers between a host and its device. A host waits for a GPU wherever it looks at a number, and where it sends some
from ordinary memory: so a step looks once, and sends from memory that the GPU reads by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate

import numpy as np
import torch

from bestiary.nn.sending import send

_ALIGNED = 16
"""Bytes: kernels read more at a time from such addresses."""


def send_together(arrays: Mapping[str, np.ndarray], device: torch.device) -> dict[str, torch.Tensor]:
    """Several arrays by their names; to a GPU they go in one copy."""
    if device.type == "cuda":
        return in_one_copy(arrays, device)
    return {name: send(array, device) for name, array in arrays.items()}


def in_one_copy(arrays: Mapping[str, np.ndarray], device: torch.device) -> dict[str, torch.Tensor]:
    """Arrays on a device, as parts of one tensor."""
    ends = list(accumulate(-(-array.nbytes // _ALIGNED) * _ALIGNED for array in arrays.values()))
    packed = np.zeros(ends[-1], np.uint8)
    parts = [slice(end, end + array.nbytes) for end, array in zip([0, *ends], arrays.values(), strict=False)]
    for part, array in zip(parts, arrays.values(), strict=True):
        packed[part] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    sent = send(packed, device)
    dtypes = {array.dtype: torch.from_numpy(array[:0]).dtype for array in arrays.values()}
    return {
        name: sent[part].view(dtypes[array.dtype]).view(array.shape)
        for part, (name, array) in zip(parts, arrays.items(), strict=True)
    }


def fetch(*vectors: torch.Tensor) -> list[list[float]]:
    """Vectors on the host, as Python numbers, after one wait for the device. Whole ones are exact below 2**53."""
    values: list[float] = torch.cat([each.double() for each in vectors]).tolist()
    ends = list(accumulate(len(each) for each in vectors))
    return [values[end - len(each) : end] for each, end in zip(vectors, ends, strict=True)]
