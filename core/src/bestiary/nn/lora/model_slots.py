"""The slots of a whole model: which adapters fit, and which is in which slot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from bestiary.api.errors import WeightsMismatch
from bestiary.nn.embedding import ParallelLMHead, VocabParallelEmbedding
from bestiary.nn.moe.layer import FusedMoE
from bestiary.nn.moe.stack import ExpertStack
from bestiary.nn.quant.base import UnquantizedLinearMethod
from bestiary.nn.weights import WeightsMapper
from bestiary.nn.weights.fill import used_addresses

from .prepare import Piece, check_shapes, embedding_factors, expert_factors, linear_factors, shards_of, stack_of
from .slots import Factors, LayerSlots
from .targets import Target, Targets

Prepared = Mapping[tuple[str, str], Factors]
"""(layer, "" or the stack of experts) → this rank's factors; those of all experts where experts move among ranks."""


class AdapterSlots:
    """Every layer's slots. An adapter is checked and cut once (`prepare`), and can then be put into any slot.

    Args:
        layers: those of `model` that can have adapters, by full name. slots: theirs, keyed as `Prepared` is.
        mappers: renames of checkpoint names that come before the class's own.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, nn.Module],
        slots: Mapping[tuple[str, str], LayerSlots],
        max_rank: int,
        mappers: Sequence[WeightsMapper],
    ) -> None:
        self.layers = layers
        self.slots = slots
        self.max_rank = max_rank
        self._targets = Targets(model, layers, mappers)

    @property
    def nbytes(self) -> int:
        """What all slots take together."""
        return sum(each.nbytes for each in self.slots.values())

    @property
    def target_names(self) -> list[str]:
        """The last parts of the names by which adapters may call the layers, sorted."""
        return self._targets.last_names()

    def prepare(self, pieces: Sequence[Piece]) -> Prepared:
        """An adapter's factors as this rank's slots take them; those of other pipeline stages are left out.

        Raises:
            WeightsMismatch: every module that is no layer here, has other shapes, or is given twice, in `details`.
        """
        problems: list[str] = []
        found: dict[tuple[str, str], list[tuple[Target, Piece]]] = {}
        for piece in pieces:
            try:
                place = self._place(piece)
            except WeightsMismatch as error:
                problems.append(f"{piece.module}: {error.message}")
                continue
            if place is not None:
                found.setdefault((place.layer, place.stack or ""), []).append((place, piece))
        made: dict[tuple[str, str], Factors] = {}
        for key, parts in found.items():
            factors = self._factors(key, parts, problems)
            if factors is not None:
                made[key] = factors
        used_addresses(forget=True)
        if problems:
            raise WeightsMismatch(f"{len(problems)} target module(s) do not fit", details=sorted(problems))
        return made

    def load(self, slot: int, adapter: Prepared) -> None:
        """Put a prepared adapter into `slot`, in place of what was there."""
        for key, each in self.slots.items():
            each.load(slot, _held(self.layers[key[0]], adapter.get(key)))

    def target(self, module: str) -> nn.Module | None:
        """The layer that an adapter's `module` is on this rank, if it is one."""
        found = self._targets.find(module)
        return None if found is None else self.layers[found.layer]

    def is_embedding(self, module: str) -> bool:
        """Whether an adapter's `module` is an embedding here, whose factors have other names."""
        return is_embedding(self.target(module))

    def experts_in(self, piece: Piece) -> int:
        """How many experts' factors a piece holds; 1 where it is of one layer."""
        found = self._targets.find(piece.module)
        layer = None if found is None else self.layers[found.layer]
        return layer.num_experts if isinstance(layer, FusedMoE) and found is not None and found.expert is None else 1

    def names_of(self, piece: Piece) -> tuple[str, ...]:
        """What PEFT calls the weight when it looks for its rank: a module, or the parameter of one."""
        if self.experts_in(piece) == 1:
            return piece.module, f"{piece.module}.weight"
        layer: Any = self.layers[self._targets.find(piece.module).layer]  # type: ignore[union-attr]
        bare = piece.module.replace(".base_layer", "")
        own = bare.rpartition(".")[2]
        if own in ("gate_up_proj", "down_proj"):
            return (bare,)
        return (f"{bare}.{'gate_up_proj' if stack_of(layer, piece) == 'w13' else 'down_proj'}",)

    def why_no_copy(self, module: str, weight: torch.Tensor) -> str | None:
        """None where `weight` is what the model has for `module`, an embedding or head; otherwise what it is."""
        found = self._targets.find(module)
        layer: Any = None if found is None else self.layers[found.layer]
        if layer is None and self._targets.is_elsewhere(module):
            return None
        if not isinstance(layer, VocabParallelEmbedding):
            return "weights of the model itself, which an adapter cannot replace"
        if tuple(weight.shape) != (layer.org_vocab_size, layer.embedding_dim):
            wanted = [layer.org_vocab_size, layer.embedding_dim]
            return f"base weights {list(weight.shape)}, where the model has {wanted}: it was trained on another"
        return None if _is_copy(layer, weight) else "other base weights than the model's, which are not replaced"

    def _place(self, piece: Piece) -> Target | None:
        """Where a piece belongs; None where that is another pipeline stage."""
        found = self._targets.find(piece.module)
        if found is None:
            if self._targets.is_elsewhere(piece.module):
                return None
            raise WeightsMismatch("the model has no such layer")
        layer = self.layers[found.layer]
        if piece.of_embedding != is_embedding(layer):
            kind = "an embedding" if is_embedding(layer) else "no embedding"
            raise WeightsMismatch(f"it is {kind} here, and the adapter has factors for the other kind")
        if not isinstance(layer, FusedMoE):
            return found
        if found.expert is not None and found.expert >= layer.num_experts:
            raise WeightsMismatch(f"there is no expert {found.expert}: the model has {layer.num_experts}")
        return found if found.stack is not None else found._replace(stack=stack_of(layer, piece))

    def _factors(
        self, key: tuple[str, str], parts: Sequence[tuple[Target, Piece]], problems: list[str]
    ) -> Factors | None:
        layer: Any = self.layers[key[0]]
        before = len(problems)
        problems += _given_twice(layer, parts)
        for target, piece in parts:
            try:
                self._check(layer, target, piece)
            except WeightsMismatch as error:
                problems.append(f"{piece.module}: {error.message}")
        if len(problems) > before:
            return None
        try:
            return _make(layer, parts)
        except WeightsMismatch as error:
            problems.append(f"{', '.join(piece.module for _, piece in parts)}: {error.message}")
            return None

    def _check(self, layer: Any, target: Target, piece: Piece) -> None:
        if not isinstance(layer, FusedMoE):
            check_shapes(layer, target.shard, piece, self.max_rank)
            return
        experts = layer.num_experts if target.expert is None else 1
        check_shapes(_stack(layer, target).layers[0], target.shard, piece, self.max_rank, experts)


def _make(layer: Any, parts: Sequence[tuple[Target, Piece]]) -> Factors:
    if isinstance(layer, FusedMoE):
        one = _stack(layer, parts[0][0]).layers[0]
        return expert_factors(one, [(target.expert, target.shard, piece) for target, piece in parts], layer.num_experts)
    if is_embedding(layer):
        return embedding_factors(layer, parts[0][1])
    return linear_factors(layer, [(target.shard, piece) for target, piece in parts])


def _held(layer: nn.Module, factors: Factors | None) -> Factors | None:
    """Of experts those that lie on this rank now; balancing may have moved them since the adapter was prepared."""
    if factors is None or not isinstance(layer, FusedMoE):
        return factors
    held = list(layer.placement.on_rank(layer.ep_rank))
    return Factors(factors.a[held], factors.b[held])


def _stack(layer: FusedMoE, target: Target) -> ExpertStack:
    return layer.stacks[target.stack == "w2"]


def _given_twice(layer: Any, parts: Sequence[tuple[Target, Piece]]) -> list[str]:
    """Parts of a layer that two pieces change."""
    taken: dict[tuple[int | None, int], str] = {}
    problems = []
    for target, piece in parts:
        one = _stack(layer, target).layers[0] if isinstance(layer, FusedMoE) else layer
        experts = range(layer.num_experts) if isinstance(layer, FusedMoE) and target.expert is None else [target.expert]
        keys = [(expert, shard) for expert in experts for shard in shards_of(one, target.shard)]
        others = {taken[key] for key in keys if key in taken}
        problems += [f"{piece.module}: changes the same weights as {other}" for other in sorted(others)]
        taken.update(dict.fromkeys(keys, piece.module))
    return problems


def is_embedding(layer: object) -> bool:
    return isinstance(layer, VocabParallelEmbedding) and not isinstance(layer, ParallelLMHead)


def _is_copy(layer: Any, weight: torch.Tensor) -> bool:
    """Whether a layer's rows are those of `weight`, as far as rounding, or its quantization, lets tell."""
    base = layer.quant_method.base
    own = weight[layer.vocab_start : layer.vocab_end].to(layer.params_dtype)
    if is_embedding(layer):
        ids = torch.arange(0, len(own), max(1, len(own) // 256))
        got, want = base.embedding(layer, ids.to(_device(layer))), own[ids]
    else:
        probe = torch.randn(4, layer.embedding_dim, generator=torch.Generator().manual_seed(0)).to(own.dtype)
        got, want = base.apply(layer, probe.to(_device(layer)))[:, : len(own)], probe @ own.t()
    coarse = max(torch.finfo(dtype).eps for dtype in (weight.dtype, layer.params_dtype))
    allowed = max(1e-3, 4 * coarse) if isinstance(base, UnquantizedLinearMethod) else 0.2
    off = (got.cpu().float() - want.float()).norm()
    return bool(off <= allowed * want.float().norm())


def _device(layer: nn.Module) -> torch.device:
    return next(layer.parameters()).device
