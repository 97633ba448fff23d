"""`WeightsMapper`: checkpoint names to model names, as data."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch

from .fill import ShardId, count_use


class ShardedName(str):
    """A parameter name with the shard of it that a checkpoint tensor fills."""

    shard_id: ShardId

    def __new__(cls, name: str, shard_id: ShardId) -> ShardedName:
        made = super().__new__(cls, name)
        made.shard_id = shard_id
        return made


@dataclass(frozen=True, kw_only=True)
class WeightsMapper:
    """Renames checkpoint tensors: regular expressions first, then substrings, prefixes, suffixes, each in given order.

    A new name of None drops the tensor on purpose. `orig_to_new_stacked` maps a substring to (new substring, shard
    id) for tensors that are one part of a fused parameter: ``{".q_proj": (".qkv_proj", "q")}``.
    """

    orig_to_new_regex: Mapping[str | re.Pattern[str], str | None] = field(default_factory=dict)
    orig_to_new_substr: Mapping[str, str | None] = field(default_factory=dict)
    orig_to_new_prefix: Mapping[str, str | None] = field(default_factory=dict)
    orig_to_new_suffix: Mapping[str, str | None] = field(default_factory=dict)
    orig_to_new_stacked: Mapping[str, tuple[str, ShardId]] = field(default_factory=dict)

    def __or__(self, other: WeightsMapper) -> WeightsMapper:
        """Both; `other` wins where keys are equal."""
        return WeightsMapper(
            orig_to_new_regex={**self.orig_to_new_regex, **other.orig_to_new_regex},
            orig_to_new_substr={**self.orig_to_new_substr, **other.orig_to_new_substr},
            orig_to_new_prefix={**self.orig_to_new_prefix, **other.orig_to_new_prefix},
            orig_to_new_suffix={**self.orig_to_new_suffix, **other.orig_to_new_suffix},
            orig_to_new_stacked={**self.orig_to_new_stacked, **other.orig_to_new_stacked},
        )

    def map_name(self, name: str) -> str | None:
        """The model's name for a tensor: None if it is dropped, a `ShardedName` for a part of a fused one."""
        mapped = self._rename(name)
        if mapped is None:
            return None
        for old, (new, shard_id) in self.orig_to_new_stacked.items():
            if old in mapped:
                return ShardedName(mapped.replace(old, new, 1), shard_id)
        return mapped

    def _rename(self, name: str) -> str | None:
        for pattern, new in self.orig_to_new_regex.items():
            compiled = re.compile(pattern) if isinstance(pattern, str) else pattern
            if compiled.search(name):
                if new is None:
                    return None
                name = compiled.sub(new, name)
        for old, new in self.orig_to_new_substr.items():
            if old in name:
                if new is None:
                    return None
                name = name.replace(old, new, 1)
        for old, new in self.orig_to_new_prefix.items():
            if name.startswith(old):
                if new is None:
                    return None
                name = new + name.removeprefix(old)
        for old, new in self.orig_to_new_suffix.items():
            if name.endswith(old):
                if new is None:
                    return None
                name = name.removesuffix(old) + new
        return name

    def apply(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        """Rename a stream of (name, tensor); dropped tensors vanish from it."""
        for name, tensor in weights:
            mapped = self.map_name(name)
            if mapped is None:
                count_use()
            else:
                yield mapped, tensor

    def apply_list(self, names: Iterable[str]) -> list[str]:
        return [mapped for name in names if (mapped := self.map_name(name)) is not None]
