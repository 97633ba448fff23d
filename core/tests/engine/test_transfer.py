"""Numbers that are sent together arrive as they were."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from bestiary.engine.transfer import in_one_copy, send_together


@pytest.mark.parametrize("way", [in_one_copy, send_together])
def test_arrays_arrive_whole(way: Callable[..., dict[str, torch.Tensor]]) -> None:
    arrays = {
        "ids": np.arange(5), "none": np.zeros(0, np.int64), "lens": np.array([7, -1, 3], np.int32),
        "tables": np.arange(12, dtype=np.int32).reshape(3, 4)[:, ::2],
    }  # fmt: skip
    sent = way(arrays, torch.device("cpu"))
    assert list(sent) == list(arrays)
    for name, array in arrays.items():
        assert torch.equal(sent[name], torch.tensor(array)), name
        assert sent[name].dtype == torch.tensor(array).dtype


def test_every_part_is_aligned() -> None:
    arrays = {name: np.ones(size, np.int32) for name, size in (("a", 1), ("b", 5), ("c", 2))}
    sent = in_one_copy(arrays, torch.device("cpu"))
    first = sent["a"].data_ptr()
    assert [(each.data_ptr() - first) % 16 for each in sent.values()] == [0, 0, 0]
