"""Experts as files for vLLM 0.9 to 0.15 have them: `FusedMoE` with its mapping, `SharedFusedMoE` with its pair."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PretrainedConfig
from vllm.config import VllmConfig
from vllm.distributed import get_tensor_model_parallel_world_size
from vllm.model_executor.layers.fused_moe import FusedMoE, SharedFusedMoE
from vllm.model_executor.layers.linear import ReplicatedLinear
from vllm.model_executor.model_loader.weight_utils import default_weight_loader
from vllm.model_executor.models.utils import is_pp_missing_parameter

from .moe_parts import MLP, Attn, Layer, SparseForCausalLM

STACKED = [
    ("qkv_proj", "q_proj", "q"),
    ("qkv_proj", "k_proj", "k"),
    ("qkv_proj", "v_proj", "v"),
    ("gate_up_proj", "gate_proj", 0),
    ("gate_up_proj", "up_proj", 1),
]


class MixtralMoE(nn.Module):
    def __init__(self, config: PretrainedConfig, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        self.gate = ReplicatedLinear(
            config.hidden_size, config.num_local_experts, bias=False, quant_config=None, prefix=f"{prefix}.gate"
        )
        self.experts = FusedMoE(
            num_experts=config.num_local_experts,
            top_k=config.num_experts_per_tok,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            params_dtype=torch.get_default_dtype(),
            reduce_results=True,
            renormalize=True,
            quant_config=vllm_config.quant_config,
            tp_size=get_tensor_model_parallel_world_size(),
            prefix=f"{prefix}.experts",
        )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        shape = hidden_states.shape
        hidden_states = hidden_states.view(-1, shape[-1])
        router_logits, _ = self.gate(hidden_states)
        return self.experts(hidden_states, router_logits).view(shape)


class MixtralLayer(Layer):
    block_name = "block_sparse_moe"

    def block(self, config: PretrainedConfig, vllm_config: VllmConfig, index: int, prefix: str) -> nn.Module:
        return MixtralMoE(config, vllm_config, prefix)


class MixtralForCausalLM(SparseForCausalLM):
    layer = MixtralLayer
    packed_modules_mapping = {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        params_dict = dict(self.named_parameters())
        expert_params_mapping = FusedMoE.make_expert_params_mapping(
            ckpt_gate_proj_name="w1",
            ckpt_down_proj_name="w2",
            ckpt_up_proj_name="w3",
            num_experts=self.config.num_local_experts,
        )
        loaded_params = set()
        for name, loaded_weight in weights:
            for param_name, weight_name, shard_id in STACKED[:3]:
                if weight_name in name:
                    name = name.replace(weight_name, param_name)
                    params_dict[name].weight_loader(params_dict[name], loaded_weight, shard_id)
                    break
            else:
                for param_name, weight_name, expert_id, shard_id in expert_params_mapping:
                    if weight_name in name:
                        name = name.replace(weight_name, param_name)
                        param = params_dict[name]
                        param.weight_loader(param, loaded_weight, name, shard_id=shard_id, expert_id=expert_id)
                        break
                else:
                    param = params_dict[name]
                    getattr(param, "weight_loader", default_weight_loader)(param, loaded_weight)
            loaded_params.add(name)
        return loaded_params


class Qwen2MoeBlock(nn.Module):
    """The shared expert's answer comes beside the routed ones', and is weighted here."""

    def __init__(self, config: PretrainedConfig, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        self.gate = ReplicatedLinear(config.hidden_size, config.num_experts, bias=False, prefix=f"{prefix}.gate")
        self.shared_expert_gate = ReplicatedLinear(config.hidden_size, 1, bias=False)
        self.shared_expert = MLP(
            config.hidden_size, config.shared_expert_intermediate_size, vllm_config, f"{prefix}.shared_expert",
            reduce_results=False,
        )  # fmt: skip
        self.experts = SharedFusedMoE(
            shared_experts=self.shared_expert,
            gate=self.gate,
            num_experts=config.num_experts,
            top_k=config.num_experts_per_tok,
            hidden_size=config.hidden_size,
            intermediate_size=config.moe_intermediate_size,
            reduce_results=False,
            renormalize=config.norm_topk_prob,
            quant_config=vllm_config.quant_config,
            prefix=f"{prefix}.experts",
        )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.experts.is_internal_router:
            shared, routed = self.experts(hidden_states=hidden_states, router_logits=hidden_states)
        else:
            router_logits, _ = self.gate(hidden_states)
            shared, routed = self.experts(hidden_states=hidden_states, router_logits=router_logits)
        output = routed + F.sigmoid(self.shared_expert_gate(hidden_states)[0]) * shared
        if get_tensor_model_parallel_world_size() > 1:
            output = self.experts.maybe_all_reduce_tensor_model_parallel(output)
        return output


class Qwen2MoeLayer(Layer):
    def attention(self, config: PretrainedConfig, vllm_config: VllmConfig, index: int, prefix: str) -> nn.Module:
        return Attn(config, vllm_config, prefix, bias=True)

    def block(self, config: PretrainedConfig, vllm_config: VllmConfig, index: int, prefix: str) -> nn.Module:
        return Qwen2MoeBlock(config, vllm_config, prefix)


class Qwen2MoeForCausalLM(SparseForCausalLM):
    layer = Qwen2MoeLayer

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        params_dict = dict(self.named_parameters())
        expert_params_mapping = SharedFusedMoE.make_expert_params_mapping(
            self,
            ckpt_gate_proj_name="gate_proj",
            ckpt_down_proj_name="down_proj",
            ckpt_up_proj_name="up_proj",
            num_experts=self.config.num_experts,
            num_redundant_experts=0,
        )
        loaded_params = set()
        for name, loaded_weight in weights:
            for param_name, weight_name, shard_id in STACKED:
                if weight_name not in name or "mlp.experts" in name:
                    continue
                name = name.replace(weight_name, param_name)
                params_dict[name].weight_loader(params_dict[name], loaded_weight, shard_id)
                break
            else:
                is_expert_weight = False
                for mapping in expert_params_mapping:
                    param_name, weight_name, expert_id, shard_id = mapping
                    if weight_name not in name:
                        continue
                    is_expert_weight = True
                    mapped = name.replace(weight_name, param_name)
                    if is_pp_missing_parameter(mapped, self):
                        continue
                    param = params_dict[mapped]
                    if param.weight_loader(
                        param, loaded_weight, mapped, shard_id=shard_id, expert_id=expert_id, return_success=True
                    ):
                        name = mapped
                        break
                else:
                    if is_expert_weight:
                        continue
                    param = params_dict[name]
                    getattr(param, "weight_loader", default_weight_loader)(param, loaded_weight)
            loaded_params.add(name)
        return loaded_params
