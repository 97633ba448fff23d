"""Renames that come before a class's own: a checkpoint of another architecture, whose tensors the class can take."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from bestiary.api.errors import WeightsMismatch

from .mapper import WeightsMapper


class Renames:
    """A mapper, tried on all of a checkpoint's names before a tensor is read.

    Args:
        names: of all tensors in the checkpoint. who: whose renames they are, for errors.

    Raises:
        WeightsMismatch: two tensors would bear one name; all such pairs are listed.
    """

    def __init__(self, mapper: WeightsMapper, names: Iterable[str], who: str) -> None:
        self._mapper = mapper
        self._origins: dict[str, str] = {}
        collisions = []
        for name in names:
            new = mapper.map_name(name)
            if new is None:
                continue
            other = self._origins.setdefault(new, name)
            if other != name:
                collisions.append(f"{other} and {name}: both are renamed to {new}")
        if collisions:
            raise WeightsMismatch(
                f"the renames of {who} give {len(collisions)} tensor(s) a name that another has",
                details=collisions,
                fix="its author: correct weights= of the Alias; None as the new name drops a tensor",
            )

    def apply(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        return self._mapper.apply(weights)

    def new_name(self, name: str) -> str | None:
        return self._mapper.map_name(name)

    def explained(self, error: WeightsMismatch, own: WeightsMapper | None) -> WeightsMismatch:
        """The same error with the checkpoint's names for the tensors that it speaks of.

        Args:
            own: the class's mapper, which renamed them once more.
        """
        origins = dict(self._origins)
        if own is not None:
            origins |= {str(new): name for old, name in self._origins.items() if (new := own.map_name(old)) is not None}
        details = [_with_origin(line, origins) for line in error.details]
        return WeightsMismatch(
            error.message, code=error.error_code, field=error.field, limit=error.limit, value=error.value,
            details=details, fix=error.fix,
        )  # fmt: skip


def _with_origin(line: str, origins: dict[str, str]) -> str:
    """``"model.norm.weight [64]: …"`` → ``"ln_f.weight (here model.norm.weight) [64]: …"``."""
    here = line.split(" [", 1)[0].split(": ", 1)[0]
    origin = origins.get(here, here)
    return line if origin == here else f"{origin} (here {here}){line[len(here) :]}"
