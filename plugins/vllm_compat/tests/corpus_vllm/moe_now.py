"""Experts as files for vLLM 0.33 have them: one factory for gate, routed and shared experts."""

from collections.abc import Iterable

import torch
from torch import nn
from transformers import PretrainedConfig
from vllm.config import VllmConfig
from vllm.distributed import get_ep_group
from vllm.model_executor.layers.fused_moe import (
    FusedMoEFactory,
    GateLinear,
    MoERunner,
    fused_moe_make_expert_params_mapping,
)
from vllm.model_executor.model_loader.weight_utils import default_weight_loader
from vllm.model_executor.models.interfaces import MixtureOfExperts
from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper

from .moe_old import STACKED
from .moe_parts import MLP, Attn, Layer, SparseForCausalLM


class Block(nn.Module):
    """Sigmoid scores, a bias for the choice alone, groups of experts, shared ones beside them."""

    def __init__(self, config: PretrainedConfig, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        eplb = vllm_config.parallel_config.eplb_config
        self.n_redundant_experts = eplb.num_redundant_experts
        self.n_local_physical_experts = config.n_routed_experts // get_ep_group().world_size
        self.gate = GateLinear(
            config.hidden_size, config.n_routed_experts, params_dtype=torch.float32, out_dtype=torch.float32,
            prefix=f"{prefix}.gate",
        )  # fmt: skip
        self.gate.e_score_correction_bias = nn.Parameter(torch.empty(config.n_routed_experts, dtype=torch.float32))
        self.shared_experts = MLP(
            config.hidden_size, config.moe_intermediate_size * config.n_shared_experts, vllm_config,
            f"{prefix}.shared_experts", reduce_results=False,
        )  # fmt: skip
        self.experts = FusedMoEFactory(
            shared_experts=self.shared_experts,
            gate=self.gate,
            num_experts=config.n_routed_experts,
            top_k=config.num_experts_per_tok,
            hidden_size=config.hidden_size,
            intermediate_size=config.moe_intermediate_size,
            renormalize=config.norm_topk_prob,
            quant_config=vllm_config.quant_config,
            use_grouped_topk=True,
            num_expert_group=config.n_group,
            topk_group=config.topk_group,
            prefix=f"{prefix}.experts",
            scoring_func="sigmoid",
            routed_scaling_factor=config.routed_scaling_factor,
            apply_routed_scale_to_output=True,
            e_score_correction_bias=self.gate.e_score_correction_bias,
            enable_eplb=vllm_config.parallel_config.enable_eplb,
            num_redundant_experts=self.n_redundant_experts,
            router_logits_dtype=torch.float32,
        )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.experts(hidden_states=hidden_states, router_logits=hidden_states)


class Glm4MoeLayer(Layer):
    def attention(self, config: PretrainedConfig, vllm_config: VllmConfig, index: int, prefix: str) -> nn.Module:
        return Attn(config, vllm_config, prefix, bias=config.attention_bias)

    def block(self, config: PretrainedConfig, vllm_config: VllmConfig, index: int, prefix: str) -> nn.Module:
        if index < config.first_k_dense_replace:
            return MLP(config.hidden_size, config.intermediate_size, vllm_config, prefix)
        return Block(config, vllm_config, prefix)


class Sparse(SparseForCausalLM, MixtureOfExperts):
    """What the runtime asks of a model with experts."""

    layer = Glm4MoeLayer

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.expert_weights = []
        self.moe_layers = [each for each in self.modules() if isinstance(each, MoERunner)]
        self.num_moe_layers = len(self.moe_layers)
        self.num_logical_experts = self.config.n_routed_experts

    def update_physical_experts_metadata(self, num_physical_experts: int, num_local_physical_experts: int) -> None:
        for layer in self.moe_layers:
            layer.update_expert_map()


class Glm4MoeForCausalLM(Sparse):
    """Loads with the mapping of `fused_moe_make_expert_params_mapping`."""

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        params_dict = dict(self.named_parameters())
        expert_params_mapping = fused_moe_make_expert_params_mapping(
            self,
            ckpt_gate_proj_name="gate_proj",
            ckpt_down_proj_name="down_proj",
            ckpt_up_proj_name="up_proj",
            num_experts=self.config.n_routed_experts,
            num_redundant_experts=0,
        )
        loaded_params = set()
        for name, loaded_weight in weights:
            for param_name, weight_name, shard_id in [] if ".mlp.experts." in name else STACKED:
                if weight_name in name:
                    name = name.replace(weight_name, param_name)
                    params_dict[name].weight_loader(params_dict[name], loaded_weight, shard_id)
                    break
            else:
                for param_name, weight_name, expert_id, shard_id in expert_params_mapping:
                    if weight_name in name:
                        name = name.replace(weight_name, param_name)
                        param = params_dict[name]
                        param.weight_loader(
                            param, loaded_weight, name, shard_id=shard_id, expert_id=expert_id, return_success=True
                        )
                        break
                else:
                    param = params_dict[name]
                    getattr(param, "weight_loader", default_weight_loader)(param, loaded_weight)
            loaded_params.add(name)
        return loaded_params


class LoadsByLayers(Sparse):
    """Leaves the experts' tensors to the experts."""

    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_stacked={
            ".q_proj": (".qkv_proj", "q"), ".k_proj": (".qkv_proj", "k"), ".v_proj": (".qkv_proj", "v"),
            ".shared_experts.gate_proj": (".shared_experts.gate_up_proj", 0),
            ".shared_experts.up_proj": (".shared_experts.gate_up_proj", 1),
            "mlp.gate_proj": ("mlp.gate_up_proj", 0), "mlp.up_proj": ("mlp.gate_up_proj", 1),
        }
    )  # fmt: skip

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        return AutoWeightsLoader(self).load_weights(weights, mapper=self.hf_to_vllm_mapper)
