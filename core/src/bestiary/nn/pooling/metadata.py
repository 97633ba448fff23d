"""How a step's flat batch falls into the prompts that are pooled."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bestiary.api.errors import EngineError
from bestiary.api.pooling import PoolingParams


class Partial:
    """What a pooler keeps of a prompt that is computed in parts: one tensor for each place where a part ended.

    A step that failed is repeated from the same place, so the tensor there is kept until a later part has been read.
    """

    __slots__ = ("_after",)

    def __init__(self) -> None:
        self._after: dict[int, torch.Tensor] = {}

    def get(self, start: int) -> torch.Tensor | None:
        """What was kept of the tokens before `start`; None at the beginning of a prompt."""
        if start == 0:
            return None
        if start not in self._after:
            raise EngineError(f"a pooler was not given the tokens before {start}, or kept nothing of them")
        return self._after[start]

    def keep(self, start: int, end: int, value: torch.Tensor) -> None:
        """Keep `value` of the tokens before `end`, the last of which began at `start`."""
        before = self._after.get(start)
        self._after = {end: value} if before is None else {start: before, end: value}


@dataclass(frozen=True, slots=True)
class PoolingItem:
    """One prompt's part of a step.

    Attributes:
        first, count: its rows of the batch. start: the position of the first of them in the prompt.
        prompt_len: tokens of the prompt.
        params: what is wanted of it. partial: what the pooler keeps of it between steps.
    """

    first: int
    count: int
    start: int
    prompt_len: int
    params: PoolingParams
    partial: Partial

    @property
    def rows(self) -> slice:
        return slice(self.first, self.first + self.count)

    @property
    def is_last(self) -> bool:
        """Whether the prompt ends in this step, so that a vector is due."""
        return self.start + self.count == self.prompt_len


@dataclass(frozen=True, slots=True)
class PoolingMetadata:
    """The prompts of one step, in the order of their rows."""

    items: tuple[PoolingItem, ...]

    @property
    def due(self) -> tuple[PoolingItem, ...]:
        """Those that end in this step."""
        return tuple(item for item in self.items if item.is_last)
