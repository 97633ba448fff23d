"""`AutoWeightsLoader`: the loader of every model that does not need its own.

It resolves each checkpoint tensor to a parameter by name, through `packed_modules_mapping` where projections are
fused, and through a child's own `load_weights` where it has one. Everything that does not fit is collected and
reported at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import nn

from bestiary.api.errors import WeightsMismatch
from bestiary.nn.stack import is_pp_missing_parameter

from .fill import ShardId, count_use, elements_filled, load_into
from .mapper import ShardedName, WeightsMapper

NOT_WEIGHTS = ("rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached", ".masked_bias")
"""Buffers that older checkpoints carry and every model computes by itself."""


_UNKNOWN = "no parameter of this name"
_SHOWN = 8


class Target(NamedTuple):
    name: str
    param: nn.Parameter
    shard_id: ShardId


class AutoWeightsLoader:
    """Load a stream of (name, tensor) into `module`.

    Args:
        skip_prefixes, skip_substrs: tensors left out on purpose.
        ignore_unexpected_prefixes, ignore_unexpected_suffixes: tensors that may be there without a parameter.
    """

    def __init__(
        self,
        module: nn.Module,
        skip_prefixes: Sequence[str] | None = None,
        skip_substrs: Sequence[str] | None = None,
        ignore_unexpected_prefixes: Sequence[str] | None = None,
        ignore_unexpected_suffixes: Sequence[str] | None = None,
    ) -> None:
        self.module = module
        self.skip_prefixes = tuple(skip_prefixes or ())
        self.skip_substrs = (*NOT_WEIGHTS, *(skip_substrs or ()))
        self.ignored_prefixes = tuple(ignore_unexpected_prefixes or ())
        self.ignored_suffixes = tuple(ignore_unexpected_suffixes or ())
        self.targets: dict[str, torch.Tensor] = dict(module.named_parameters(remove_duplicate=False))
        self.targets.update(module.named_buffers(remove_duplicate=False))
        self.modules = dict(module.named_modules(remove_duplicate=False))
        self.owners = sorted((name for name, each in self.modules.items() if name and _loads_itself(each)), key=len)
        self.packed = packed_parts(module)
        self.problems: list[str] = []

    def load_weights(
        self, weights: Iterable[tuple[str, torch.Tensor]], *, mapper: WeightsMapper | None = None
    ) -> set[str]:
        """Load everything; return the names of the parameters that received a tensor.

        Raises:
            WeightsMismatch: listing every tensor that fits nowhere, has the wrong shape, or contradicts a tied one.
        """
        stream = weights if mapper is None else mapper.apply(weights)
        loaded: set[str] = set()
        for owner, group in groupby(self._without_skipped(stream), key=lambda pair: self._owner(pair[0])):
            loaded |= self._load_group(owner, group)
        if self.problems:
            raise WeightsMismatch(
                f"{len(self.problems)} checkpoint tensor(s) do not fit {type(self.module).__name__}",
                details=[*self.problems, *self._unfilled_so_far()],
                fix="check that the checkpoint is of this architecture; map other names with a WeightsMapper",
            )
        return loaded

    def _without_skipped(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in weights:
            if name.startswith(self.skip_prefixes) or any(part in name for part in self.skip_substrs):
                count_use()
            else:
                yield name, tensor

    def _owner(self, name: str) -> str:
        return next((owner for owner in self.owners if name.startswith(owner + ".")), "")

    def _load_group(self, owner: str, group: Iterator[tuple[str, torch.Tensor]]) -> set[str]:
        if not owner:
            return {loaded for name, tensor in group if (loaded := self._load_one(name, tensor))}
        child: Any = self.modules[owner]
        try:
            inner = child.load_weights((_strip(name, owner), tensor) for name, tensor in group)
        except WeightsMismatch as error:
            self.problems += [f"{owner}.{each}" for each in error.details or [f"*: {error.message}"]]
            return set()
        return {f"{owner}.{name}" for name in inner or ()}

    def _load_one(self, name: str, tensor: torch.Tensor) -> str | None:
        target = self._resolve(name)
        if target is None:
            if not self._may_be_left(name):
                self.problems.append(f"{name} {list(tensor.shape)}: {_UNKNOWN}")
            count_use()
            return None
        try:
            load_into(target.param, tensor, target.shard_id)
        except WeightsMismatch as error:
            self.problems.append(f"{name}: {error.message}")
        return target.name

    def _unfilled_so_far(self) -> Iterator[str]:
        """Where a tensor has a name that nobody knows, the parameters that it may have been meant for."""
        names = [name for name, param in self.module.named_parameters() if not elements_filled(param)]
        if names and any(problem.endswith(_UNKNOWN) for problem in self.problems):
            more = " …" if len(names) > _SHOWN else ""
            yield f"parameters without a tensor so far: {', '.join(names[:_SHOWN])}{more}"

    def _may_be_left(self, name: str) -> bool:
        ignored = name.startswith(self.ignored_prefixes) or name.endswith(self.ignored_suffixes)
        return ignored or is_pp_missing_parameter(name, self.module)

    def _resolve(self, name: str) -> Target | None:
        shard_id = name.shard_id if isinstance(name, ShardedName) else None
        if name in self.targets:
            return self._target(str(name), shard_id)
        parts = name.split(".")
        for at in range(len(parts) - 2, -1, -1):
            for fused, index in self.packed.get(parts[at], ()):
                fused_name = ".".join([*parts[:at], fused, *parts[at + 1 :]])
                if fused_name in self.targets:
                    layer = self.modules[".".join([*parts[:at], fused])]
                    return self._target(fused_name, _shard_id(layer, index))
        return None

    def _target(self, name: str, shard_id: ShardId) -> Target:
        return Target(name, self.targets[name], shard_id)  # type: ignore[arg-type]


def packed_parts(module: nn.Module) -> Mapping[str, list[tuple[str, int]]]:
    """The name of each projection that is fused → (name of the fused layer, position in it).

    Gathered from the `packed_modules_mapping` of `module` and of everything below it.
    """
    parts: dict[str, list[tuple[str, int]]] = {}
    for each in module.modules():
        mapping: Mapping[str, Sequence[str]] = getattr(each, "packed_modules_mapping", {})
        for fused, names in mapping.items():
            for index, name in enumerate(names):
                if name != fused and (fused, index) not in parts.setdefault(name, []):
                    parts[name].append((fused, index))
    return parts


def _shard_id(layer: nn.Module, index: int) -> ShardId:
    at: Any = getattr(layer, "shard_id_at", None)
    return index if at is None else at(index)


def _loads_itself(module: nn.Module) -> bool:
    return callable(getattr(module, "load_weights", None))


def _strip(name: str, owner: str) -> str:
    stripped = name[len(owner) + 1 :]
    return ShardedName(stripped, name.shard_id) if isinstance(name, ShardedName) else stripped
