"""From the hidden states of a prompt to one: the last token's, the first one's, the mean of all. Plain torch.

A method is given the rows of a step, in which a prompt may begin, go on or end, and answers for those that end.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import nn

from bestiary.api.protocols import PoolingTypeStr

from .metadata import PoolingItem, PoolingMetadata


class PoolingMethod(nn.Module):
    """`reads_all`: whether it needs more than the hidden state of a prompt's last token."""

    reads_all = True

    def forward(self, hidden_states: torch.Tensor, pooling_metadata: PoolingMetadata) -> list[torch.Tensor]:
        """``[tokens, hidden]`` → for each prompt that ends, in order, ``[hidden]`` in float32."""
        found = [(item, self.read(hidden_states[item.rows], item)) for item in pooling_metadata.items]
        return [vector.float() for item, vector in found if item.is_last]

    def read(self, rows: torch.Tensor, item: PoolingItem) -> torch.Tensor:
        """What is pooled of a prompt's tokens so far; `rows` ``[item.count, hidden]`` are the newest of them."""
        raise NotImplementedError


class LastPool(PoolingMethod):
    reads_all = False

    def read(self, rows: torch.Tensor, item: PoolingItem) -> torch.Tensor:
        return rows[-1]


class CLSPool(PoolingMethod):
    def read(self, rows: torch.Tensor, item: PoolingItem) -> torch.Tensor:
        known = item.partial.get(item.start)
        first = rows[0].clone() if known is None else known
        item.partial.keep(item.start, item.start + item.count, first)
        return first


class MeanPool(PoolingMethod):
    """Rows are added one after the other in float64, so that a mean does not depend on where a prompt was cut (on a
    CPU to the last bit, where hidden states do not)."""

    def read(self, rows: torch.Tensor, item: PoolingItem) -> torch.Tensor:
        known = item.partial.get(item.start)
        rows = rows.double()
        total = torch.cumsum(rows if known is None else torch.cat([known[None], rows]), 0)[-1].clone()
        end = item.start + item.count
        item.partial.keep(item.start, end, total)
        return total / end


METHODS: Mapping[PoolingTypeStr, type[PoolingMethod]] = MappingProxyType(
    {"LAST": LastPool, "CLS": CLSPool, "MEAN": MeanPool}
)
