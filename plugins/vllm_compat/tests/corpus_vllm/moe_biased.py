"""gpt-oss: experts with biases and interleaved gates and ups, loaded by a class of one's own; keys that are learned."""

from collections.abc import Iterable

import torch
from torch import nn
from transformers import PretrainedConfig
from vllm.config import VllmConfig
from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size
from vllm.model_executor.layers.fused_moe import FusedMoEFactory, GateLinear, RoutedExperts
from vllm.model_executor.model_loader.weight_utils import remap_moe_expert_weights
from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper

from .moe_parts import Attn, Layer, SparseForCausalLM


class BiasedExperts(RoutedExperts):
    """Its checkpoints hold ``[experts, in, 2 * width]``, a gate's column and then an up's."""

    def __init__(self, *args, width: int, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.full_width = width

    def weight_loader(self, param: nn.Parameter, loaded_weight: torch.Tensor, weight_name: str, shard_id: str) -> None:
        tp_rank, tp_size = self.moe_config.moe_parallel_config.tp_rank, self.moe_config.tp_size
        width = self.full_width // tp_size
        if weight_name.endswith("_weight"):
            loaded_weight = loaded_weight.transpose(1, 2)
        if shard_id == "w13":
            loaded_weight = loaded_weight[:, 2 * width * tp_rank : 2 * width * (tp_rank + 1)]
        elif weight_name.endswith("_weight"):
            loaded_weight = loaded_weight[..., width * tp_rank : width * (tp_rank + 1)]
        elif tp_rank > 0:
            loaded_weight = torch.zeros_like(loaded_weight)
        param.data.copy_(loaded_weight)


class Block(nn.Module):
    def __init__(self, config: PretrainedConfig, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        self.router = GateLinear(config.hidden_size, config.num_local_experts, bias=True, prefix=f"{prefix}.router")
        self.experts = FusedMoEFactory(
            num_experts=config.num_local_experts,
            top_k=config.num_experts_per_tok,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            renormalize=True,
            quant_config=vllm_config.quant_config,
            prefix=f"{prefix}.experts",
            has_bias=True,
            activation="swigluoai",
            routed_experts_cls=BiasedExperts,
            routed_experts_args={"width": config.intermediate_size},
        )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        router_logits, _ = self.router(hidden_states)
        return self.experts(hidden_states=hidden_states, router_logits=router_logits)


class GptOssLayer(Layer):
    def attention(self, config: PretrainedConfig, vllm_config: VllmConfig, index: int, prefix: str) -> nn.Module:
        heads = config.num_attention_heads // get_tensor_model_parallel_world_size()
        sinks = nn.Parameter(torch.empty(heads))
        window = config.sliding_window if config.layer_types[index] == "sliding_attention" else None
        made = Attn(
            config, vllm_config, prefix, bias=True, output_bias=True, per_layer_sliding_window=window, sinks=sinks
        )
        made.sinks = sinks
        return made

    def block(self, config: PretrainedConfig, vllm_config: VllmConfig, index: int, prefix: str) -> nn.Module:
        return Block(config, vllm_config, prefix)


class GptOssForCausalLM(SparseForCausalLM):
    layer = GptOssLayer
    packed_modules_mapping = {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}
    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_suffix={
            ".gate_up_proj": ".w13_weight",
            ".gate_up_proj_bias": ".w13_bias",
            ".experts.down_proj": ".experts.w2_weight",
            ".experts.down_proj_bias": ".experts.w2_bias",
        },
        orig_to_new_stacked={
            ".q_proj": (".qkv_proj", "q"), ".k_proj": (".qkv_proj", "k"), ".v_proj": (".qkv_proj", "v")
        },
    )  # fmt: skip

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        params_dict = dict(self.named_parameters())
        loaded: set[str] = set()
        others = self._without_experts(weights, params_dict, loaded)
        return loaded | AutoWeightsLoader(self).load_weights(others, mapper=self.hf_to_vllm_mapper)

    def _without_experts(self, weights, params_dict, loaded):
        rank, size = get_tensor_model_parallel_rank(), get_tensor_model_parallel_world_size()
        for name, tensor in weights:
            if ".experts." in name:
                stream = remap_moe_expert_weights(self.hf_to_vllm_mapper.apply([(name, tensor)]), params_dict)
                for mapped, each in stream:
                    param = params_dict[mapped]
                    param.weight_loader(param, each, mapped, "w13" if ".w13_" in mapped else "w2")
                    loaded.add(mapped)
            elif name.endswith(".sinks"):
                params_dict[name].data.copy_(tensor.chunk(size)[rank])
                loaded.add(name)
            else:
                yield name, tensor
