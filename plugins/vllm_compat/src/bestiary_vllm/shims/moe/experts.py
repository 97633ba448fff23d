"""Core's experts with vLLM's ways of loading them and the facts that its model files read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from bestiary.api.errors import ConfigError, WeightsMismatch
from bestiary.nn import FusedMoE as CoreFusedMoE
from bestiary.nn.moe.names import Place
from bestiary.nn.weights.fill import count_use, load_into

from .settings import FusedMoEParallelConfig

SHARDS = {"w1": ("w13", 0), "w3": ("w13", 1), "w2": ("w2", None), "w13": ("w13", None)}
"""vLLM's shard ids of an expert's gate, up and down projection."""
ROUTED = "routed_experts"


class Experts(CoreFusedMoE):
    """Core's experts, loaded by the parameter, with an expert's id and a shard's.

    Attributes:
        is_transposed: stacked checkpoints hold ``[experts, in, out]``.
        zero_experts: logits beyond the experts' are of experts that give a token back as it is.
    """

    is_transposed = False
    zero_experts = False
    quant_method = _quant_method = SimpleNamespace(is_monolithic=False)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        kind = options.pop("zero_expert_type", None)
        super().__init__(*arguments, **options)
        if kind not in (None, "identity"):
            raise ConfigError("unknown kind of experts without weights", field="zero_expert_type", value=kind)
        self.zero_experts = kind is not None
        ranks = FusedMoEParallelConfig.here()
        self.tp_size, self.tp_rank, self.ep_size = ranks.tp_size, ranks.tp_rank, ranks.ep_size
        self.moe_config = SimpleNamespace(
            moe_parallel_config=ranks, tp_size=ranks.tp_size, tp_rank=ranks.tp_rank, ep_size=ranks.ep_size,
            ep_rank=ranks.ep_rank, num_experts=self.num_experts, num_local_experts=self.placement.num_local,
            experts_per_token=self.top_k, hidden_dim=self.hidden_size, intermediate_size=self.intermediate_size,
            intermediate_size_per_partition=self.intermediate_size // ranks.tp_size, is_act_and_mul=self.is_gated,
        )  # fmt: skip

    @property
    def layer_name(self) -> str:
        return self._layer_name

    @layer_name.setter
    def layer_name(self, name: str) -> None:
        """Checkpoints know nothing of the module in between."""
        self._layer_name = name.removesuffix(f".{ROUTED}")

    def combine(self, hidden_states: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """As core's; where there are zero experts, what they keep of a token is spread over the ranks."""
        if not self.zero_experts:
            return super().combine(hidden_states, weights, ids)
        none = ids >= self.num_experts
        kept = (weights * none).sum(-1, keepdim=True) / self.group.world_size
        output = super().combine(hidden_states, weights.masked_fill(none, 0.0), ids.masked_fill(none, -1))
        return output + (hidden_states.float() * kept).to(output.dtype)

    def place(self, quant_config: Any) -> None:
        super().place(quant_config)
        for name, param in self._parameters.items():
            if param is not None and name.startswith(("w13_", "w2_")):
                param.weight_loader = self.weight_loader  # type: ignore[attr-defined]

    def weight_loader(
        self,
        param: nn.Parameter,
        loaded_weight: torch.Tensor,
        weight_name: str = "",
        shard_id: str = "",
        expert_id: int | None = None,
        return_success: bool = False,
    ) -> bool | None:
        """Load one projection of one expert, or, of a tensor of three dimensions, of all experts or all of this rank's.

        Returns:
            Under `return_success`, whether the expert lies on this rank.
        """
        name = next((name for name, each in self._parameters.items() if each is param), "")
        stack, _, parameter = name.partition("_")
        if stack not in ("w13", "w2"):
            raise WeightsMismatch("this is no parameter of these experts", value=weight_name)
        known, shard = SHARDS.get(shard_id, (stack, None))
        if known != stack:
            raise WeightsMismatch(f"{name} has no shard {shard_id!r}", limit=", ".join(SHARDS), value=shard_id)
        shard = shard if self.is_gated else None
        if loaded_weight.dim() == 3:
            expert_id = None
            loaded_weight = loaded_weight.transpose(1, 2) if self.is_transposed else loaded_weight
        if expert_id is None and len(loaded_weight) == self.placement.num_local != self.num_experts:
            self._load_own(stack, shard, parameter, loaded_weight)
            return True if return_success else None
        loaded = self._load(Place(expert_id, stack, shard, parameter), loaded_weight)
        return bool(loaded) if return_success else None

    def _load_own(self, stack: str, shard: int | None, parameter: str, loaded: torch.Tensor) -> None:
        """Tensors of this rank's experts, slot by slot."""
        layers = self._w13 if stack == "w13" else self._w2
        for slot, part in enumerate(loaded):
            count_use(part)
            layers.load([slot], shard, parameter, part)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """As core's; a stacked checkpoint's matrices may be transposed, and parameters may be beside the experts'."""
        beside: set[str] = set()
        return super().load_weights(self._experts_alone(weights, beside)) | beside

    def _experts_alone(
        self, weights: Iterable[tuple[str, torch.Tensor]], loaded: set[str]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in weights:
            param = self._parameters.get(name)
            if param is not None and not name.startswith(("w13_", "w2_")):
                load_into(param, tensor)
                loaded.add(name)
                continue
            stacked = self.is_transposed and not name.partition(".")[0].isdecimal() and tensor.dim() == 3
            yield name, tensor.transpose(1, 2) if stacked else tensor

    @property
    def expert_map(self) -> torch.Tensor | None:
        """int32 ``[experts]``: the place of each on this rank, −1 where it has none; None where all are here."""
        if self.placement.num_ranks == 1:
            return None
        held = list(self.placement.on_rank(self.ep_rank))
        places = [held.index(expert) if expert in held else -1 for expert in range(self.num_experts)]
        return torch.tensor(places, dtype=torch.int32)

    @property
    def global_num_experts(self) -> int:
        return self.placement.num_physical

    @property
    def logical_num_experts(self) -> int:
        return self.num_experts

    @property
    def local_num_experts(self) -> int:
        return self.placement.num_local

    @property
    def use_ep(self) -> bool:
        return self.ep_size > 1

    def get_expert_weights(self) -> list[torch.Tensor]:
        """All stacked parameters, flattened by expert: ``[slots, numbers]`` each."""
        return [param.view(len(param), -1) for param in self._parameters.values() if param is not None]

    def update_expert_map(self) -> None:
        """Where experts lie is kept up to date by the layer itself."""

    def set_eplb_state(self, *state: Any, **more: Any) -> None:
        """The engine balances experts by itself."""

    def must_reduce_shared_expert_outputs(self) -> bool:
        """Whether what shared experts say is summed over ranks before the routed ones' is added: never."""
        return False

    def maybe_all_reduce_tensor_model_parallel(self, final_hidden_states: torch.Tensor) -> torch.Tensor:
        """The sum over ranks, of what `forward` has not reduced yet."""
        reduced = self.reduce_results or self.group.world_size == 1
        return final_hidden_states if reduced else self.group.all_reduce(final_hidden_states)

    @classmethod
    def make_expert_params_mapping(
        cls,
        model: Any = None,
        ckpt_gate_proj_name: str | None = None,
        ckpt_down_proj_name: str = "down_proj",
        ckpt_up_proj_name: str | None = None,
        num_experts: int = 0,
        num_redundant_experts: int = 0,
        routed_experts_prefix: str = ROUTED,
    ) -> list[tuple[str, str, int, str]]:
        """(parameter's prefix, checkpoint's prefix, expert, shard id) of every projection of every expert.

        Versions until 0.15 did not give `model`; its experts may be within a module of their own.
        """
        below = f"experts.{routed_experts_prefix}" if _has_inner(model) else "experts"
        names = (("w1", ckpt_gate_proj_name), ("w2", ckpt_down_proj_name), ("w3", ckpt_up_proj_name))
        return [
            (f"{below}.{'w2_' if shard == 'w2' else 'w13_'}", f"experts.{expert}.{name}.", expert, shard)
            for expert in range(num_experts)
            for shard, name in names
            if name is not None
        ]


def _has_inner(model: Any) -> bool:
    """Whether experts' parameters lie in a module below ``experts``."""
    return isinstance(model, nn.Module) and any(name.endswith(f".{ROUTED}") for name, _ in model.named_modules())


def fused_moe_make_expert_params_mapping(
    model: nn.Module,
    ckpt_gate_proj_name: str | None,
    ckpt_down_proj_name: str,
    ckpt_up_proj_name: str | None,
    num_experts: int,
    num_redundant_experts: int = 0,
    routed_experts_prefix: str = ROUTED,
) -> list[tuple[str, str, int, str]]:
    """As `Experts.make_expert_params_mapping`."""
    return Experts.make_expert_params_mapping(
        model, ckpt_gate_proj_name, ckpt_down_proj_name, ckpt_up_proj_name, num_experts, num_redundant_experts,
        routed_experts_prefix,
    )  # fmt: skip
