"""Which layer of a model an adapter's module is, whatever the adapter was trained on calls it.

An adapter names modules as the checkpoint does, so everything that loads the checkpoint applies: an alias's renames and
the class's `hf_to_vllm_mapper`, `packed_modules_mapping` for projections that are fused here, the names of experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from bestiary.nn.moe.layer import FusedMoE
from bestiary.nn.moe.names import place_of
from bestiary.nn.stack import is_pp_missing_parameter
from bestiary.nn.weights import ShardedName, ShardId, WeightsMapper, packed_parts

_WRAPPED = ".base_layer"


class Target(NamedTuple):
    """layer: its full name. shard: of a fused layer, None for all of it. For experts, `expert` is the number of one, or
    None for all together; `stack` "w13" or "w2", or None where the shapes alone say which of the two is meant."""

    layer: str
    shard: ShardId = None
    expert: int | None = None
    stack: str | None = None


class Targets:
    """The names of a model's layers that can have adapters.

    Args:
        layers: those layers by full name. mappers: applied to checkpoint names, in order.
    """

    def __init__(self, model: nn.Module, layers: Mapping[str, nn.Module], mappers: Sequence[WeightsMapper]) -> None:
        self._model = model
        self._layers = layers
        self._mappers = [*mappers, *own_mappers(model)]
        self._packed = packed_parts(model)
        self._experts = [name for name, layer in layers.items() if isinstance(layer, FusedMoE)]

    def find(self, module: str) -> Target | None:
        """The layer that `module` is here; None where there is none."""
        name = self._renamed(module)
        if name is None:
            return None
        shard = name.shard_id if isinstance(name, ShardedName) else None
        return self._named(str(name), shard) or self._fused(name) or self._of_experts(name) or self._moved(name)

    def last_names(self) -> list[str]:
        """The last parts of the names of all layers and of the parts that are fused into them, sorted."""
        found = {name.rpartition(".")[2] for name in self._layers}
        return sorted(
            found | {part for part, places in self._packed.items() if any(fused in found for fused, _ in places)}
        )

    def is_elsewhere(self, module: str) -> bool:
        """Whether another pipeline stage holds it."""
        name = self._renamed(module)
        return name is not None and is_pp_missing_parameter(f"{name}.weight", self._model)

    def shard_of(self, layer: str, index: int) -> ShardId:
        """The id of the `index`-th part of a fused layer."""
        found: Any = getattr(self._layers[layer], "shard_id_at", None)
        return index if found is None else found(index)

    def _renamed(self, module: str) -> str | None:
        """The class's name for a module: mappers know names of weights, which may end in more than a module's."""
        name: str | None = f"{module}.weight"
        shard: ShardId = None
        for mapper in self._mappers:
            name = mapper.map_name(str(name))
            if name is None:
                return None
            shard = name.shard_id if isinstance(name, ShardedName) else shard
        bare = str(name).removesuffix(".weight")
        return bare if shard is None else ShardedName(bare, shard)

    def _named(self, name: str, shard: ShardId) -> Target | None:
        layer = self._layers.get(name)
        return None if layer is None or isinstance(layer, FusedMoE) else Target(name, shard)

    def _fused(self, name: str) -> Target | None:
        head, _, last = name.rpartition(".")
        for fused, index in self._packed.get(last, ()):
            layer = f"{head}.{fused}" if head else fused
            if layer in self._layers:
                return Target(layer, self.shard_of(layer, index))
        return None

    def _of_experts(self, name: str) -> Target | None:
        owner = next((each for each in self._experts if f"{name}.".startswith(f"{each}.")), None)
        if owner is None:
            return None
        rest = name[len(owner) :]
        while rest.endswith(_WRAPPED):
            rest = rest.removesuffix(_WRAPPED)
        if not rest:
            return Target(owner)
        layer: Any = self._layers[owner]
        place = place_of(rest[1:], layer.ckpt_names, layer.is_gated)
        if place is None or place.parameter != "weight":
            return None
        return Target(owner, place.shard, place.expert, place.stack)

    def _moved(self, name: str) -> Target | None:
        """Experts and what stands beside them, where the block that holds them has another name than here.

        transformers 5 calls every such block ``mlp`` in memory, and adapters are named after that; checkpoints, and so
        the classes here, keep their own names (``block_sparse_moe``). Taken only where one layer can be meant.
        """
        found: set[Target] = set()
        for owner in self._experts:
            block = owner.rpartition(".")[0]
            above, _, _ = block.rpartition(".")
            rest = name.removeprefix(f"{above}.").split(".") if name.startswith(f"{above}.") else []
            if len(rest) > 1:
                moved = ".".join([block, *rest[1:]])
                target = self._named(moved, None) or self._fused(moved) or self._of_experts(moved)
                found |= set() if target is None else {target}
        return found.pop() if len(found) == 1 else None


def own_mappers(model: nn.Module) -> list[WeightsMapper]:
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    return [mapper] if isinstance(mapper, WeightsMapper) else []
