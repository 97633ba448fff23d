"""`FusedMoE`: a token's few experts out of many (arXiv 1701.06538, 2401.04088), as one layer.

Two layouts among ranks. Tensor-parallel: every rank holds a slice of every expert. Expert-parallel, where an expert
group of several ranks is installed: every rank holds whole experts, spare copies included. In both, each rank computes
what it can for all tokens, and the sum over ranks is the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from bestiary.api.errors import WeightsMismatch
from bestiary.nn.linear import ColumnParallelLinear, MergedColumnParallelLinear, RowParallelLinear
from bestiary.nn.linear_base import LinearBase
from bestiary.nn.ops.moe import (
    ACTIVATIONS,
    UNGATED,
    Activation,
    by_expert,
    fused_experts,
    grouped_experts,
    topk_routing,
)
from bestiary.nn.parallel import get_ep_group, get_tp_group
from bestiary.nn.quant.base import QuantizationConfig
from bestiary.nn.weights.fill import count_use

from .arguments import check, refuse_unknown, spare_copies
from .load import ExpertLoad
from .names import DEFAULT_NAMES, Place, parts_of, place_of
from .placement import ExpertPlacement
from .stack import ExpertStack, tensors_of

if TYPE_CHECKING:
    from bestiary.nn.lora.rows import SlotRows
    from bestiary.nn.lora.slots import ExpertSlots

Routing = Callable[..., tuple[torch.Tensor, torch.Tensor]]


class FusedMoE(nn.Module):
    """Routed experts, each ``down(act(gate(x)) * up(x))``, or ``down(act(up(x)))`` where the activation has no gate.

    Attributes:
        placement: which experts lie where. layer_name: the full name, set by the placement walk.
        adapter_slots: room for adapters; None where none are wanted.
        load: counts which experts are chosen; None where nobody asks.
        w13_weight ``[slots, 2 * width, hidden]`` (gate, then up) and w2_weight ``[slots, hidden, width]``, this rank's;
        a quantization method may put other parameters in their place.
    """

    is_moe_layer = True
    physical_ids: torch.Tensor
    num_copies: torch.Tensor
    adapter_slots: ExpertSlots | None = None
    load: ExpertLoad | None = None

    def __init__(
        self,
        num_experts: int,
        top_k: int,
        hidden_size: int,
        intermediate_size: int,
        params_dtype: torch.dtype | None = None,
        reduce_results: bool = True,
        renormalize: bool = True,
        use_grouped_topk: bool = False,
        num_expert_group: int | None = None,
        topk_group: int | None = None,
        quant_config: Any = None,
        prefix: str = "",
        custom_routing_function: Routing | None = None,
        scoring_func: str = "softmax",
        routed_scaling_factor: float = 1.0,
        e_score_correction_bias: torch.Tensor | None = None,
        activation: str | Activation = "silu",
        num_redundant_experts: int | None = None,
        ckpt_names: tuple[str, str, str] = DEFAULT_NAMES,
        has_bias: bool = False,
        apply_router_weight_on_input: bool = False,
        **extra: Any,
    ) -> None:
        """`prefix` and `quant_config` are accepted and ignored: the placement walk supplies them.

        Args:
            intermediate_size: the width of one expert, over all ranks.
            renormalize: the weights of a token's experts sum to one.
            custom_routing_function: called with hidden_states, gating_output, topk and renormalize instead of the
                built-in routing; gives (weights, ids) as `topk_routing` does.
            activation: a name in `ACTIVATIONS` or `UNGATED`, or a function of an expert's first product
                ``[tokens, 2 * width]``, gates first, which gives ``[tokens, width]``.
            num_redundant_experts: spare copies under expert parallelism; the build scope's where None.
            ckpt_names: what checkpoints call an expert's gate, down and up projections.
            has_bias: both products of an expert have a bias.
            apply_router_weight_on_input: a token is multiplied by an expert's weight before that expert, not after it.

        Raises:
            ConfigError: more experts a token than there are, an unknown activation or scoring function, or a keyword
                that asks for something this layer does not do.
        """
        super().__init__()
        refuse_unknown(extra)
        check(num_experts, top_k, activation, scoring_func)
        self.layer_name = ""
        self.num_experts, self.top_k = num_experts, top_k
        self.hidden_size, self.intermediate_size = hidden_size, intermediate_size
        self.renormalize, self.scoring_func = renormalize, scoring_func
        self.groups = (num_expert_group, topk_group) if use_grouped_topk else (None, None)
        self.routed_scaling_factor, self.activation = routed_scaling_factor, activation
        self.is_gated = activation not in UNGATED
        self.weigh_input = apply_router_weight_on_input
        self.custom_routing_function = custom_routing_function
        self.e_score_correction_bias = e_score_correction_bias
        self.ckpt_names = ckpt_names
        ep = get_ep_group()
        self.group = ep if ep.world_size > 1 else get_tp_group()
        self.reduce_results = reduce_results
        self.placement = ExpertPlacement.in_order(num_experts, ep.world_size, spare_copies(num_redundant_experts, ep))
        self.ep_rank = ep.rank
        kind: dict[str, Any] = {"bias": has_bias, "params_dtype": params_dtype, "disable_tp": ep.world_size > 1}
        gate_up: Callable[[], LinearBase] = partial(ColumnParallelLinear, hidden_size, intermediate_size, **kind)
        if self.is_gated:
            gate_up = partial(MergedColumnParallelLinear, hidden_size, [intermediate_size] * 2, **kind)
        down = partial(RowParallelLinear, intermediate_size, hidden_size, reduce_results=False, **kind)
        self._w13 = ExpertStack(self, "w13", self.placement.num_local, gate_up)
        self._w2 = ExpertStack(self, "w2", self.placement.num_local, down)
        self._beside: list[tuple[torch.Tensor, int]] = []
        self.set_placement(self.placement)

    @property
    def stacks(self) -> tuple[ExpertStack, ExpertStack]:
        """All gate-and-up layers of this rank, and all down layers."""
        return self._w13, self._w2

    @property
    def expert_layers(self) -> list[LinearBase]:
        """This rank's linear layers, all gate-and-up ones and then all down ones; their parameters are views."""
        return [*self._w13.layers, *self._w2.layers]

    @property
    def experts_move(self) -> bool:
        """Whether they may come to lie elsewhere, which is why their load is counted."""
        return self.load is not None

    def expert_tensors(self, slot: int) -> list[torch.Tensor]:
        """All that belongs to the expert in a slot, as views that can be written, in an order that all slots share."""
        layers = (self._w13.layers[slot], self._w2.layers[slot])
        own = [tensor for layer in layers for tensor in tensors_of(layer)]
        return own + [stacked.select(dim, slot) for stacked, dim in self._beside]

    def keep_with_experts(self, stacked: torch.Tensor, dim: int) -> None:
        """Let `stacked`, whose dimension `dim` is this rank's slots, move with the experts (an adapter's factors)."""
        self._beside.append((stacked, dim))

    def set_placement(self, placement: ExpertPlacement) -> None:
        """Where experts lie from now on. `moving.move_experts` moves their weights, too, and calls this."""
        self.placement = placement
        device = self.physical_ids.device if hasattr(self, "physical_ids") else None
        copies = placement.copies()
        widest = max(len(each) for each in copies)
        table = torch.tensor([each + each[:1] * (widest - len(each)) for each in copies], device=device)
        self.register_buffer("physical_ids", table, persistent=False)
        counts = torch.tensor([len(each) for each in copies], device=device)
        self.register_buffer("num_copies", counts, persistent=False)

    def forward(self, hidden_states: torch.Tensor, router_logits: torch.Tensor) -> torch.Tensor:
        """``[tokens, hidden]`` and ``[tokens, experts]`` → ``[tokens, hidden]``, summed over ranks."""
        output = self.combine(hidden_states, *self.route(hidden_states, router_logits))
        if self.reduce_results and self.group.world_size > 1:
            output = self.group.all_reduce(output)
        return output

    def combine(self, hidden_states: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """This rank's part of the answer, the experts being chosen as `route` chooses: fp32 `weights` and `ids`, int64,
        −1 for none."""
        if self.load is not None:
            self.load.count(ids)
        slots = self._slots(ids)
        adapters = None if self.adapter_slots is None else self.adapter_slots.rows(len(hidden_states))
        if adapters is None and not (self.weigh_input and self.top_k > 1):
            x = hidden_states * weights.to(hidden_states.dtype) if self.weigh_input else hidden_states
            output = self._together(x, torch.ones_like(weights) if self.weigh_input else weights, slots)
            if output is not None:
                return output
        expert = partial(self._expert, adapters)
        if self.weigh_input:
            expert, weights = partial(expert, weights=weights, slots=slots), torch.ones_like(weights)
        return by_expert(hidden_states, weights, slots, self.placement.num_local, expert)

    def _together(self, x: torch.Tensor, weights: torch.Tensor, slots: torch.Tensor) -> torch.Tensor | None:
        """All experts by one op; None where none can."""
        first, second = self._w13, self._w2
        if self.activation in ACTIVATIONS and first.is_fused and second.is_fused:
            return fused_experts(x, first.weight, second.weight, weights, slots, str(self.activation))
        if first.product is None or second.product is None:
            return None
        return grouped_experts(x, first.product, second.product, weights, slots, self._act)

    def route(self, hidden_states: torch.Tensor, router_logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(weights fp32, logical expert ids int64), both ``[tokens, top_k]``."""
        if self.custom_routing_function is not None:
            weights, ids = self.custom_routing_function(
                hidden_states=hidden_states,
                gating_output=router_logits,
                topk=self.top_k,
                renormalize=self.renormalize,
            )
            weights, ids = weights.float(), ids.long()
        else:
            weights, ids = topk_routing(
                router_logits,
                self.top_k,
                self.renormalize,
                self.scoring_func,
                self.e_score_correction_bias,
                *self.groups,
            )
        return (weights if self.routed_scaling_factor == 1.0 else weights * self.routed_scaling_factor), ids

    def _slots(self, ids: torch.Tensor) -> torch.Tensor:
        """This rank's slots of logical experts, −1 for those of other ranks and for none; tokens take turns among
        copies."""
        placement = self.placement
        if placement.num_ranks == 1 and placement.num_physical == placement.num_logical:
            return ids
        turn = torch.arange(len(ids), device=ids.device).unsqueeze(-1) % self.num_copies[ids]
        local = self.physical_ids[ids, turn] - self.ep_rank * placement.num_local
        return torch.where((ids >= 0) & (local >= 0) & (local < placement.num_local), local, -1)

    def _expert(
        self,
        adapters: SlotRows | None,
        slot: int,
        x: torch.Tensor,
        tokens: torch.Tensor,
        weights: torch.Tensor | None = None,
        slots: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """One expert's answer to ``x``, the rows `tokens` of the step; `adapters` says whose adapters they want. With
        `weights` and `slots`, as `route` and `_slots` give them, its input is weighted."""
        if weights is not None and slots is not None:
            share = torch.where(slots[tokens] == slot, weights[tokens], 0).sum(-1, keepdim=True)
            x = x * share.to(x.dtype)
        gate_up, _ = self._w13.layers[slot](x)
        rows = None
        if adapters is not None and self.adapter_slots is not None:
            rows = adapters.pick(tokens)
            gate_up = self.adapter_slots.gate_up.add_expert(slot, gate_up, x, rows)
        inner = self._act(gate_up)
        output: torch.Tensor = self._w2.layers[slot](inner)[0]
        if rows is not None and self.adapter_slots is not None:
            output = self.adapter_slots.down.add_expert(slot, output, inner, rows)
        return output

    @property
    def _act(self) -> Activation:
        """What stands between an expert's two products."""
        if isinstance(self.activation, str):
            return (ACTIVATIONS if self.is_gated else UNGATED)[self.activation]
        return self.activation

    def place(self, quant_config: QuantizationConfig | None) -> None:
        gate, down, up = self.ckpt_names
        first = (gate, up) if self.is_gated else (up,)
        held = self.placement.on_rank(self.ep_rank)
        for expert, layer in zip(held, self._w13.layers, strict=True):
            layer.fused_names = tuple(f"{self.layer_name}.{expert}.{name}" for name in first)
        self._w13.place(quant_config, [f"{self.layer_name}.{expert}.{first[0]}" for expert in held])
        self._w2.place(quant_config, [f"{self.layer_name}.{expert}.{down}" for expert in held])

    def finish(self) -> None:
        self._w13.finish()
        self._w2.finish()

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load experts one by one or stacked, under the names of `names.place_of`.

        Raises:
            WeightsMismatch: listing every tensor that does not fit.
        """
        loaded: set[str] = set()
        problems: list[str] = []
        for name, tensor in weights:
            place = place_of(name, self.ckpt_names, self.is_gated)
            try:
                if place is None:
                    raise WeightsMismatch("no parameter of this name")
                loaded |= self._load(place, tensor)
            except WeightsMismatch as error:
                count_use()
                problems.append(f"{name} {list(tensor.shape)}: {error.message}")
        if problems:
            raise WeightsMismatch(f"{len(problems)} expert tensor(s) do not fit", details=problems)
        return loaded

    def _load(self, place: Place, tensor: torch.Tensor) -> set[str]:
        stack = self._w13 if place.stack == "w13" else self._w2
        held = self.placement.on_rank(self.ep_rank)
        loaded = set()
        for expert, part in parts_of(tensor, place, self.num_experts):
            count_use(part)
            slots = [slot for slot, logical in enumerate(held) if logical == expert]
            if slots:
                loaded.add(stack.load(slots, place.shard, place.parameter, part))
        return loaded

    def extra_repr(self) -> str:
        return (
            f"experts={self.num_experts}, top_k={self.top_k}, hidden={self.hidden_size}, width={self.intermediate_size}"
        )
