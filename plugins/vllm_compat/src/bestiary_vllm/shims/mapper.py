"""`WeightsMapper` with what vLLM's has beyond core's: its order of renames, and weights that fill several shards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from bestiary.nn import WeightsMapper as CoreWeightsMapper
from bestiary.nn.weights.fill import ShardId, count_use
from bestiary.nn.weights.mapper import ShardedName

ShardIds = ShardId | list[ShardId]


@dataclass(frozen=True, kw_only=True)
class WeightsMapper(CoreWeightsMapper):
    """Regular expressions first, then substrings, parts of fused parameters, prefixes, suffixes.

    A list of shard ids in `orig_to_new_stacked` loads the same tensor into each of them. `orig_to_new_renaming` takes
    transformers' renaming objects.
    """

    orig_to_new_stacked: Mapping[str, tuple[str, Any]] = field(default_factory=dict)
    orig_to_new_renaming: list[Any] = field(default_factory=list)

    def __or__(self, other: CoreWeightsMapper) -> WeightsMapper:
        joined = super().__or__(other)
        more = getattr(other, "orig_to_new_renaming", [])
        return WeightsMapper(**vars(joined), orig_to_new_renaming=[*self.orig_to_new_renaming, *more])

    def map_name(self, name: str) -> str | None:
        found = self.map_shards(name)
        if found is None:
            return None
        new, shards = found
        return new if shards is None or isinstance(shards, list) else ShardedName(new, shards)

    def map_shards(self, name: str) -> tuple[str, ShardIds] | None:
        """(new name, shard id, ids, or None); None where the tensor is dropped."""
        for renaming in self.orig_to_new_renaming:
            name, _ = renaming.rename_source_key(name)
        first = CoreWeightsMapper(orig_to_new_regex=self.orig_to_new_regex, orig_to_new_substr=self.orig_to_new_substr)
        then = CoreWeightsMapper(orig_to_new_prefix=self.orig_to_new_prefix, orig_to_new_suffix=self.orig_to_new_suffix)
        renamed, shards = first.map_name(name), None
        if renamed is None:
            return None
        for old, (new, ids) in self.orig_to_new_stacked.items():
            if old in renamed:
                renamed, shards = renamed.replace(old, new, 1), ids
        last = then.map_name(renamed)
        return None if last is None else (last, shards)

    def apply(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        """Rename a stream. Names of parts are `ShardedName`s, and their tensors have the id as attribute `shard_id`."""
        for name, tensor in weights:
            found = self.map_shards(name)
            if found is None:
                count_use()
                continue
            new, shards = found
            if shards is None:
                yield new, tensor
                continue
            for shard in shards if isinstance(shards, list) else [shards]:
                part = tensor.detach()
                part.shard_id = shard  # type: ignore[attr-defined]
                yield ShardedName(new, shard), part

    def apply_dict(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {new: value for name, value in values.items() if (new := self.map_name(name)) is not None}

    def get_rename_mapper(self) -> WeightsMapper:
        """The renames alone: neither parts of fused parameters nor what is dropped."""
        kept: dict[str, Any] = {
            name: {old: new for old, new in getattr(self, name).items() if new is not None}
            for name in ("orig_to_new_regex", "orig_to_new_substr", "orig_to_new_prefix", "orig_to_new_suffix")
        }
        return replace(self, orig_to_new_stacked={}, **kept)
