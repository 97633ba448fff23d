"""Mixtures of experts as vLLM's model files build them, now and in earlier versions, upon core's `FusedMoE`.

FusedMoEFactory(…)   → a `MoERunner`: gate, routed experts, shared experts, and what joins them          (0.30 on)
FusedMoE(…)          the experts alone; their sum is reduced over ranks only when asked for
SharedFusedMoE(…)    both; answers with the pair (shared, routed)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from bestiary.api.errors import ConfigError, WeightsMismatch
from bestiary.nn import FusedMoE as CoreFusedMoE
from bestiary.nn import (
    GateLinear as CoreGateLinear,
)
from bestiary.nn.activation import SwigluOAIAndMul, SwigluStepAndMul
from bestiary.nn.moe.names import Place
from bestiary.nn.ops.moe import fused_experts as core_fused_experts
from bestiary.nn.ops.moe import topk_routing
from bestiary.nn.quant.base import UnquantizedLinearMethod
from bestiary.nn.weights.fill import load_into

SHARDS = {"w1": ("w13", 0), "w3": ("w13", 1), "w2": ("w2", None), "w13": ("w13", None)}
"""vLLM's shard ids of an expert's gate, up and down projection."""
ROUTED = ".routed_experts"

_IGNORED = (
    "quant_config", "tp_size", "dp_size", "ep_size", "pcp_size", "enable_eplb", "is_sequence_parallel", "skip_padding",
    "router_logits_dtype", "intermediate_pad", "n_shared_experts", "fuse_shared_experts", "shared_expert_prefix",
)  # fmt: skip
"""What decides how vLLM computes, and not what: the layout of ranks, kernels, and buffers."""


def activation_of(
    name: str, limit: float | None = None, alpha: float | None = None, beta: float | None = None
) -> str | Callable[[torch.Tensor], torch.Tensor]:
    """Core's name of an activation, or a function of the gates and ups that lie one after the other."""
    if name in ("gelu_pytorch_tanh", "gelu_tanh"):
        return "gelu_tanh"
    if name == "swigluoai":
        return SwigluOAIAndMul(1.702 if alpha is None else alpha, 7.0 if limit is None else limit)
    if name == "swigluoai_uninterleave":
        return partial(_swiglu_oai, limit=limit, alpha=alpha, beta=beta)
    if name == "swiglustep":
        return SwigluStepAndMul(7.0 if limit is None else limit)
    if name == "relu2":
        return lambda x: F.relu(x[..., : x.shape[-1] // 2]).square() * x[..., x.shape[-1] // 2 :]
    if limit is not None:
        return partial(_clamped_silu, limit=limit, alpha=alpha, beta=beta)
    return name


def _clamped_silu(x: torch.Tensor, limit: float, alpha: float | None = None, beta: float | None = None) -> torch.Tensor:
    """``gate' * sigmoid(alpha * gate') * (up' + beta)`` of gates and ups clamped by `limit`."""
    gate, up = x.chunk(2, -1)
    gate, up = gate.clamp_max(limit), up.clamp(-limit, limit)
    inner = F.silu(gate) if alpha is None else gate * torch.sigmoid(gate * alpha)
    return inner * (up if beta is None else up + beta)


def _swiglu_oai(x: torch.Tensor, limit: float | None, alpha: float | None, beta: float | None) -> torch.Tensor:
    return _clamped_silu(x, limit or 7.0, alpha or 1.702, 1.0 if beta is None else beta)


class GateLinear(CoreGateLinear):
    """A router's gate whose logits may have another dtype than its weights.

    Attributes:
        out_dtype: of the logits; None for that of the hidden states.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        bias: bool = False,
        out_dtype: torch.dtype | None = None,
        params_dtype: torch.dtype | None = None,
        quant_config: Any = None,
        prefix: str = "",
        **options: Any,
    ) -> None:
        options.pop("force_fp32_compute", None)
        super().__init__(input_size, output_size, bias=bias, params_dtype=params_dtype, prefix=prefix, **options)
        self.out_dtype = out_dtype

    def set_out_dtype(self, out_dtype: torch.dtype) -> None:
        self.out_dtype = out_dtype

    def finish(self) -> None:
        """A plain weight is not packed for kernels: it may be multiplied in a wider dtype."""
        if not isinstance(self.quant_method, UnquantizedLinearMethod):
            super().finish()

    def forward(self, x: torch.Tensor) -> Any:
        """``[tokens, hidden]`` → (logits ``[tokens, experts]``, None), or the logits alone without `return_bias`;
        computed in the wider of both dtypes."""
        plain = isinstance(self.quant_method, UnquantizedLinearMethod)
        computed = torch.promote_types(self.weight.dtype, self.out_dtype or self.weight.dtype) if plain else x.dtype
        if not plain or computed == self.weight.dtype == x.dtype:
            made = super().forward(x)
            logits = made[0] if self.return_bias else made
        else:
            bias = None if self.bias is None else self.bias.to(computed)
            logits = F.linear(x.to(computed), self.weight.to(computed), bias)
        logits = logits.to(self.out_dtype or x.dtype)
        return (logits, None) if self.return_bias else logits


class Experts(CoreFusedMoE):
    """Core's experts with vLLM's ways of loading them: by the parameter, with an expert's id and a shard's."""

    is_transposed = False

    @property
    def layer_name(self) -> str:
        return self._layer_name

    @layer_name.setter
    def layer_name(self, name: str) -> None:
        """Checkpoints know nothing of the module in between."""
        self._layer_name = name.removesuffix(ROUTED)

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
        """Load one projection of one expert, or, of a tensor of three dimensions, of all experts.

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
        if not self.is_gated:
            shard = None
        if loaded_weight.dim() == 3:
            expert_id = None
            loaded_weight = loaded_weight.transpose(1, 2) if self.is_transposed else loaded_weight
        loaded = self._load(Place(expert_id, stack, shard, parameter), loaded_weight)
        return bool(loaded) if return_success else None

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

    def get_expert_weights(self) -> list[torch.Tensor]:
        """All stacked parameters, flattened by expert: ``[slots, numbers]`` each."""
        return [param.view(len(param), -1) for param in self._parameters.values() if param is not None]

    def update_expert_map(self) -> None:
        """Where experts lie is kept up to date by the layer itself."""

    def set_eplb_state(self, *state: Any, **more: Any) -> None:
        """The engine balances experts by itself."""

    @property
    def moe_config(self) -> Any:
        """Facts that model files read: the number of ranks, the sizes."""
        return SimpleNamespace(
            tp_size=1 if self.group is not None and self.placement.num_ranks > 1 else self.group.world_size,
            num_experts=self.num_experts, experts_per_token=self.top_k, hidden_dim=self.hidden_size,
            intermediate_size=self.intermediate_size,
        )  # fmt: skip

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
    def local_num_experts(self) -> int:
        return self.placement.num_local

    @classmethod
    def make_expert_params_mapping(
        cls,
        model: Any = None,
        ckpt_gate_proj_name: str | None = None,
        ckpt_down_proj_name: str = "down_proj",
        ckpt_up_proj_name: str | None = None,
        num_experts: int = 0,
        num_redundant_experts: int = 0,
        routed_experts_prefix: str | None = None,
    ) -> list[tuple[str, str, int, str]]:
        """(parameter's prefix, checkpoint's prefix, expert, shard id) of every projection of every expert."""
        inner = _below(model)
        below = f"experts.{routed_experts_prefix or inner}" if inner else "experts"
        names = (("w1", ckpt_gate_proj_name), ("w2", ckpt_down_proj_name), ("w3", ckpt_up_proj_name))
        return [
            (f"{below}.{'w2_' if shard == 'w2' else 'w13_'}", f"experts.{expert}.{name}.", expert, shard)
            for expert in range(num_experts)
            for shard, name in names
            if name is not None
        ]


def _below(model: Any) -> str:
    """What stands between ``experts`` and its parameters in a model: nothing, where the experts are the module."""
    modules = model.modules() if isinstance(model, nn.Module) else ()
    return "routed_experts" if any(isinstance(each, MoERunner) for each in modules) else ""


class RoutedExperts(Experts):
    """The part of a `MoERunner` that has parameters; what derives from it may bring a loader of its own.

    In vLLM it is made by the factory, with arguments that are its own business: they are passed on as they are.
    """

    def __init__(self, settings: Mapping[str, Any], **options: Any) -> None:
        super().__init__(**settings)


class MoERunner(nn.Module):
    """Gate, routed experts, shared experts: ``[tokens, hidden]`` → ``[tokens, hidden]``.

    Attributes:
        routed_experts: the experts.
    """

    def __init__(
        self,
        routed_experts: Experts,
        gate: nn.Module | None = None,
        shared_experts: nn.Module | None = None,
        shared_expert_gate: nn.Module | None = None,
        routed_input_transform: nn.Module | None = None,
        routed_output_transform: nn.Module | None = None,
        scale: float = 1.0,
        reduce_results: bool = True,
        zero_experts: bool = False,
    ) -> None:
        super().__init__()
        self.routed_experts = routed_experts
        self._parts = (gate, shared_experts, shared_expert_gate, routed_input_transform, routed_output_transform)
        self._scale, self._reduce, self._zero_experts = scale, reduce_results, zero_experts

    gate = property(lambda self: self._parts[0])
    shared_experts = property(lambda self: self._parts[1])

    def __getattr__(self, name: str) -> Any:
        """What is not the runner's is the experts': sizes, placement, loaders."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_") or name == "routed_experts":
                raise
            return getattr(super().__getattr__("routed_experts"), name)

    def forward(
        self, hidden_states: torch.Tensor, router_logits: torch.Tensor | None = None, **more: Any
    ) -> torch.Tensor:
        """`router_logits` ``[tokens, experts]`` are not looked at where the runner has a gate of its own."""
        gate, shared, shared_gate, before, after = self._parts
        if gate is not None:
            router_logits = _first(gate(hidden_states))
        if router_logits is None:
            raise ConfigError("these experts have no gate, and were given no logits", field="router_logits")
        inner = hidden_states if before is None else _first(before(hidden_states))
        weights, ids = self.routed_experts.route(inner, router_logits)
        output = self._combined(inner, weights, ids)
        output = output if after is None else _first(after(self._reduced(output)))
        output = output if self._scale == 1.0 else output * self._scale
        if after is not None:
            return (
                output if shared is None else output + self._reduced(self._shared(shared, shared_gate, hidden_states))
            )
        return self._reduced(output if shared is None else output + self._shared(shared, shared_gate, hidden_states))

    def _combined(self, x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """The chosen experts' answers, summed; ids beyond the experts are those of experts that change nothing."""
        if not self._zero_experts:
            return self.routed_experts.combine(x, weights, ids)
        none = ids >= self.routed_experts.num_experts
        kept = (weights * none).sum(-1, keepdim=True)
        output = self.routed_experts.combine(x, weights.masked_fill(none, 0.0), ids.masked_fill(none, -1))
        ranks = self.routed_experts.group.world_size if self._reduce else 1
        return output + (x.float() * kept / ranks).to(x.dtype)

    def _shared(self, shared: nn.Module, gate: nn.Module | None, hidden_states: torch.Tensor) -> torch.Tensor:
        output = _first(shared(hidden_states))
        return output if gate is None else output * torch.sigmoid(_first(gate(hidden_states)))

    def _reduced(self, output: torch.Tensor) -> torch.Tensor:
        group = self.routed_experts.group
        return group.all_reduce(output) if self._reduce and group.world_size > 1 else output

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """The experts' tensors, under their own names or below ``routed_experts``."""
        plain = ((name.removeprefix("routed_experts."), tensor) for name, tensor in weights)
        return {f"routed_experts.{name}" for name in self.routed_experts.load_weights(plain)}


def _first(output: Any) -> torch.Tensor:
    """A layer's output, whether or not its bias comes with it."""
    found: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return found


def FusedMoEFactory(
    num_experts: int,
    top_k: int,
    hidden_size: int,
    intermediate_size: int,
    *,
    gate: nn.Module | None = None,
    shared_experts: nn.Module | None = None,
    shared_expert_gate: nn.Module | None = None,
    routed_input_transform: nn.Module | None = None,
    routed_output_transform: nn.Module | None = None,
    routed_scaling_factor: float = 1.0,
    apply_routed_scale_to_output: bool = False,
    reduce_results: bool = True,
    zero_expert_type: str | None = None,
    routed_experts_cls: type[RoutedExperts] | None = None,
    routed_experts_args: Mapping[str, Any] | None = None,
    runner_cls: type[MoERunner] | None = None,
    runner_args: Mapping[str, Any] | None = None,
    **options: Any,
) -> MoERunner:
    """Experts with all that surrounds them.

    Args:
        gate: makes the logits; without one `forward` is given them.
        shared_experts: a layer whose answer is added for every token, weighted by ``sigmoid(shared_expert_gate(x))``
            where there is such a gate. Its own answer must not be reduced over ranks: the sum is.
        routed_input_transform, routed_output_transform: what the routed experts work between.
        routed_scaling_factor: multiplies the routed experts' weights, or their answer.
        zero_expert_type: "identity": logits beyond `num_experts` are of experts that give a token back as it is.

    The rest is `bestiary.nn.FusedMoE`'s.
    """
    if zero_expert_type not in (None, "identity"):
        raise ConfigError("unknown kind of experts without weights", field="zero_expert_type", value=zero_expert_type)
    settings, transposed = experts_settings(options)
    settings |= {
        "num_experts": num_experts, "top_k": top_k, "hidden_size": hidden_size, "reduce_results": False,
        "intermediate_size": intermediate_size,
        "routed_scaling_factor": 1.0 if apply_routed_scale_to_output else routed_scaling_factor,
    }  # fmt: skip
    experts = (routed_experts_cls or RoutedExperts)(settings, **routed_experts_args or {})
    experts.is_transposed = transposed
    return (runner_cls or MoERunner)(
        experts,
        gate,
        shared_experts,
        shared_expert_gate,
        routed_input_transform,
        routed_output_transform,
        scale=routed_scaling_factor if apply_routed_scale_to_output else 1.0,
        reduce_results=reduce_results,
        zero_experts=zero_expert_type is not None,
        **runner_args or {},
    )


def experts_settings(options: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """vLLM's keyword arguments as core's, and whether stacked checkpoints are transposed."""
    settings = {name: value for name, value in options.items() if name not in _IGNORED}
    limit, alpha, beta = (settings.pop(f"swiglu_{name}", None) for name in ("limit", "alpha", "beta"))
    settings["activation"] = activation_of(settings.pop("activation", "silu"), limit, alpha, beta)
    transposed = bool(settings.pop("is_fused_checkpoint_transposed", False))
    names: Sequence[str | None] | None = settings.pop("ckpt_names", None)
    if names is not None:
        gate, down, up = names
        settings["ckpt_names"] = (gate or up, down, up or gate)
    return settings, transposed


class FusedMoE(Experts):
    """The experts as a module of their own, until 0.29."""

    def __init__(
        self, num_experts: int, top_k: int, hidden_size: int, intermediate_size: int, *, reduce_results: bool = False,
        is_act_and_mul: bool = True, **options: Any,
    ) -> None:  # fmt: skip
        settings, transposed = experts_settings(options)
        if not is_act_and_mul and isinstance(settings["activation"], str):
            settings["activation"] += "_no_mul"
        super().__init__(num_experts, top_k, hidden_size, intermediate_size, reduce_results=reduce_results, **settings)
        self.is_transposed = transposed

    def maybe_all_reduce_tensor_model_parallel(self, final_hidden_states: torch.Tensor) -> torch.Tensor:
        """The sum over ranks, of what was not reduced yet."""
        return self.group.all_reduce(final_hidden_states) if self.group.world_size > 1 else final_hidden_states

    def must_reduce_shared_expert_outputs(self) -> bool:
        return False


class SharedFusedMoE(FusedMoE):
    """Experts beside shared ones: answers with (what the shared ones say, what the routed ones say)."""

    def __init__(
        self, shared_experts: nn.Module | None = None, gate: nn.Module | None = None, use_overlapped: bool = True,
        routed_input_transform: nn.Module | None = None, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(**options)
        self._shared = (shared_experts, gate, routed_input_transform)

    @property
    def is_internal_router(self) -> bool:
        """Whether `forward` wants hidden states in the place of logits."""
        return self._shared[1] is not None

    def forward(self, hidden_states: torch.Tensor, router_logits: torch.Tensor) -> Any:
        shared, gate, before = self._shared
        if gate is not None:
            router_logits = _first(gate(hidden_states))
        routed = super().forward(hidden_states if before is None else _first(before(hidden_states)), router_logits)
        return (None if shared is None else _first(shared(hidden_states))), routed


def fused_moe_make_expert_params_mapping(
    model: nn.Module,
    ckpt_gate_proj_name: str | None,
    ckpt_down_proj_name: str,
    ckpt_up_proj_name: str | None,
    num_experts: int,
    num_redundant_experts: int = 0,
    routed_experts_prefix: str = "routed_experts",
) -> list[tuple[str, str, int, str]]:
    """As `Experts.make_expert_params_mapping`."""
    return Experts.make_expert_params_mapping(
        model, ckpt_gate_proj_name, ckpt_down_proj_name, ckpt_up_proj_name, num_experts, num_redundant_experts,
        routed_experts_prefix,
    )  # fmt: skip


def fused_topk(
    hidden_states: torch.Tensor, gating_output: torch.Tensor, topk: int, renormalize: bool, **options: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(weights fp32, ids int32, rows int32), each ``[tokens, topk]``: softmax over all experts, then the best."""
    weights, ids = topk_routing(gating_output, topk, renormalize, options.get("scoring_func", "softmax"))
    rows = torch.arange(ids.numel(), device=ids.device, dtype=torch.int32).view(topk, -1).t()
    return weights, ids.int(), rows


def grouped_topk(
    hidden_states: torch.Tensor,
    gating_output: torch.Tensor,
    topk: int,
    renormalize: bool,
    num_expert_group: int = 0,
    topk_group: int = 0,
    scoring_func: str = "softmax",
    routed_scaling_factor: float = 1.0,
    e_score_correction_bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(weights fp32, ids int32), both ``[tokens, topk]``, chosen within the best groups of experts."""
    groups = (num_expert_group, topk_group) if num_expert_group else (None, None)
    weights, ids = topk_routing(gating_output, topk, renormalize, scoring_func, e_score_correction_bias, *groups)
    return weights * routed_scaling_factor, ids.int()


def fused_experts(
    hidden_states: torch.Tensor,
    w1: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    inplace: bool = False,
    activation: str = "silu",
    **options: Any,
) -> torch.Tensor:
    """Tokens through their experts, whose stacked weights are parameters of the caller's."""
    return core_fused_experts(hidden_states, w1, w2, topk_weights.float(), topk_ids.long(), str(activation))


def resolve_layer_fused_shared_expert(*arguments: Any, **options: Any) -> bool:
    """Shared experts are never laid among the routed ones here."""
    return False


def is_model_fused_shared_expert_compatible(*arguments: Any, **options: Any) -> bool:
    return False


def maybe_fuse_shared_experts(weights: Iterable[tuple[str, torch.Tensor]], **options: Any) -> Iterable[Any]:
    """The stream as it is: see `resolve_layer_fused_shared_expert`."""
    return weights


def activation_without_mul(activation: str) -> str:
    """The name of an activation of experts without a gate."""
    return activation if activation.endswith("_no_mul") else f"{activation}_no_mul"


def maybe_remap_moe_expert_param_name(name: str, params_dict: Mapping[str, Any]) -> str:
    """A stacked parameter's name with the module that holds it now, if the model has that."""
    renamed = name.replace(".experts.", f".experts{ROUTED}.", 1)
    return renamed if ROUTED not in name and renamed in params_dict else name


def remap_moe_expert_weights(
    weights: Iterable[tuple[str, torch.Tensor]], params_dict: Mapping[str, Any]
) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in weights:
        yield maybe_remap_moe_expert_param_name(name, params_dict), tensor
