"""What every rank of an engine will hold, before anything is loaded: each part of the model is built on meta alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from bestiary.api.config import ParallelConfig, VllmConfig
from bestiary.api.errors import BestiaryError, UsageError
from bestiary.nn.attention.backend import KVCacheSpec
from bestiary.nn.parallel import noting_refusals, use_groups
from bestiary.nn.state.spec import StateSpec

from .footprint import Footprint, footprint
from .layer_states import state_specs
from .loader.load import build_model
from .memory import cache_room, free_memory
from .model_layers import kv_cache_specs
from .parallel.places import groups_of, parts_of


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPlan:
    """One part of the model, and the ranks that hold it: one a copy of the model.

    Attributes:
        stage, place: of the pipeline, and among the ranks that share its tensors.
        memory: what each of these ranks may take. block_bytes: of one KV-cache block.
        blocks, state_rows: KV-cache blocks, and rows for layers' states, that the engine would make, if it were for
            these ranks alone; `refusal`: why it would not, in the engine's words.
    """

    ranks: tuple[int, ...]
    stage: int
    place: int
    footprint: Footprint
    memory: int
    block_bytes: int
    blocks: int | None
    state_rows: int
    refusal: UsageError | None

    @property
    def left(self) -> int:
        """What weights and activations leave of the memory; negative where they do not fit."""
        return self.memory - self.footprint.held - self.footprint.activations

    @property
    def state_bytes(self) -> int:
        """What layers' states take."""
        return self.state_rows * self.footprint.state_bytes_per_row

    @property
    def fitting_blocks(self) -> int | None:
        """KV-cache blocks that would fit into what states leave of that; None where this part keeps no cache."""
        return max(0, (self.left - self.state_bytes) // self.block_bytes) if self.block_bytes else None


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """Attributes: parts: every distinct part of the model, in the order of ranks. block_size, longest: in tokens."""

    parallel: ParallelConfig
    parts: tuple[RankPlan, ...]
    block_size: int
    longest: int

    @property
    def bottleneck(self) -> RankPlan:
        """The part with room for the fewest blocks, and of those the one that has least left."""
        return min(self.parts, key=lambda part: (_or_infinite(part.fitting_blocks), part.left))

    @property
    def blocks(self) -> int | None:
        """Blocks that every rank would make: the smallest number of all; None where one would make none."""
        each = [part.blocks for part in self.parts]
        return None if None in each else min(block for block in each if block is not None)

    @property
    def state_rows(self) -> int:
        """Rows for layers' states that every rank would make; 0 where no layer has one, or nothing fits."""
        return min((part.state_rows for part in self.parts if part.footprint.state_bytes_per_row), default=0)

    def sequences(self, blocks: int | None) -> int | None:
        """How many sequences of `max_model_len` tokens have room in as many blocks a rank, over all copies."""
        if blocks is None:
            return None
        return blocks // -(-self.longest // self.block_size) * self.parallel.data_parallel_size


def plan_memory(model_class: type, config: VllmConfig, memory_per_rank: int | None = None) -> MemoryPlan:
    """Every rank's memory. The ops that the engine would choose must be in force.

    Args:
        memory_per_rank: what each rank may take; None is this machine's free memory, a CPU's divided among its ranks.

    Raises:
        UsageError: the model cannot be divided like this; with every size that does not divide, and what would.
    """
    parallel = config.parallel_config
    local = parallel.ranks_per_node if config.device_config.device == "cpu" else 1
    memory = free_memory(config.device_config.device) // local if memory_per_rank is None else memory_per_rank
    built = [(part, ranks, *_measured(model_class, config, part)) for part, ranks in parts_of(parallel)]
    beside = sum(found.held * len(ranks) for _, ranks, found, *_ in built) // parallel.nnodes
    parts = []
    for part, ranks, found, specs, states in built:
        blocks: int | None = None
        rows = 0
        refusal: UsageError | None = None
        try:
            reserved = beside if local > 1 else found.held
            room = cache_room(specs, states, config, reserved, local, memory * local)
            blocks, rows = room.num_blocks, room.num_state_rows
        except UsageError as error:
            refusal = error
        parts.append(
            RankPlan(
                ranks=ranks, stage=part.pipeline_parallel_rank, place=part.tensor_parallel_rank, footprint=found,
                memory=memory, block_bytes=found.kv_bytes_per_token * config.cache_config.block_size, blocks=blocks,
                state_rows=rows, refusal=refusal,
            )
        )  # fmt: skip
    return MemoryPlan(
        parallel=parallel, parts=tuple(parts), block_size=config.cache_config.block_size,
        longest=config.model_config.max_model_len,
    )  # fmt: skip


def _measured(
    model_class: type, config: VllmConfig, part: ParallelConfig
) -> tuple[Footprint, list[KVCacheSpec], list[StateSpec]]:
    try:
        model = _build(model_class, config, part)
    except BestiaryError as error:
        refusals = _refusals(model_class, config, part)
        if not refusals:
            raise
        raise _all_in_one(refusals, _sizes_that_work(model_class, config, part, refusals), part) from error
    return footprint(model, config), list(kv_cache_specs(model).values()), list(state_specs(model).values())


def _build(model_class: type, config: VllmConfig, part: ParallelConfig) -> nn.Module:
    with use_groups(groups_of(part)):
        return build_model(model_class, replace(config, parallel_config=part))


def _refusals(model_class: type, config: VllmConfig, part: ParallelConfig) -> list[BestiaryError]:
    """Everything that cannot be divided like this, each thing once."""
    with noting_refusals() as noted, suppress(BestiaryError):  # what stops the rest was raised before
        _build(model_class, config, part)
    return list({error.message: error for error in noted}.values())


def _all_in_one(refusals: Sequence[BestiaryError], sizes: Sequence[int], part: ParallelConfig) -> UsageError:
    divided_anew = _must_be_divided_anew(refusals)
    own = ("pipeline_parallel_size", "pipeline_layers") if divided_anew else _OWN_FIX
    fixes = list(dict.fromkeys(error.fix for error in refusals if error.fix and error.field in own))
    if sizes:
        *most, last = map(str, sizes)
        spare = divided_anew and part.eplb_config.num_redundant_experts > 0
        also = ", with num_redundant_experts=0" if spare else ""
        fixes.append(f"tensor_parallel_size={', '.join(most)}{' or ' * bool(most)}{last}{also}")
    several = len(refusals) > 1
    return UsageError(
        f"the model cannot be divided like this: {len(refusals)} sizes do not fit" if several else refusals[0].message,
        field="tensor_parallel_size" if several else refusals[0].field,
        value=part.tensor_parallel_size if several else refusals[0].value,
        limit=None if several else refusals[0].limit,
        details=[f"{error.message} (rule: {error.limit})" for error in refusals] if several else (),
        fix="; ".join(fixes) or refusals[0].fix,
    )


def _sizes_that_work(
    model_class: type, config: VllmConfig, part: ParallelConfig, refusals: Sequence[BestiaryError]
) -> list[int]:
    """Tensor-parallel sizes that divide all of what does not divide now, each tried on a model of one stage."""
    sizes = [error.value for error in refusals if isinstance(error.value, int) and error.field not in _NO_SIZES]
    common = math.gcd(*sizes) or _LARGEST
    eplb = replace(part.eplb_config, num_redundant_experts=0) if _must_be_divided_anew(refusals) else part.eplb_config
    found = []
    for size in (each for each in range(1, _LARGEST + 1) if common % each == 0):
        with suppress(BestiaryError):  # then this size is not among those found
            _build(model_class, config, replace(part, **_ALONE, tensor_parallel_size=size, eplb_config=eplb))
            found.append(size)
    return found


def _must_be_divided_anew(refusals: Sequence[BestiaryError]) -> bool:
    """Whether something is wrong that only another tensor-parallel size mends."""
    return any(error.field not in _OWN_FIX for error in refusals)


_NO_SIZES = (
    "num_key_value_heads", "num_redundant_experts", "tensor_parallel_size", "pipeline_parallel_size", "pipeline_layers",
)  # fmt: skip
"""Fields of errors whose value a tensor-parallel size need not divide."""
_OWN_FIX = ("num_redundant_experts", "pipeline_parallel_size", "pipeline_layers")
"""Fields of errors that another tensor-parallel size does not mend."""
_LARGEST = 64
_ALONE: dict[str, Any] = {
    "rank": 0, "pipeline_parallel_size": 1, "pipeline_layers": None, "data_parallel_size": 1, "nnodes": 1,
    "node_rank": 0, "enable_eplb": False,
}  # fmt: skip


def _or_infinite(blocks: int | None) -> float:
    return math.inf if blocks is None else blocks
