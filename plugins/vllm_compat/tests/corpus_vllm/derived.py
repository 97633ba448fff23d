"""Models that derive from vLLM's Llama and Qwen, as published packages do."""

from torch import nn
from vllm.config import VllmConfig
from vllm.model_executor.models.adapters import as_embedding_model, as_seq_cls_model
from vllm.model_executor.models.llama import LlamaAttention, LlamaDecoderLayer, LlamaForCausalLM, LlamaModel
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM
from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM


class CountingModel(LlamaModel):
    """A model of layers of another kind."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "", layer_type: type[nn.Module] = LlamaDecoderLayer):
        super().__init__(vllm_config=vllm_config, prefix=prefix, layer_type=layer_type)
        self.count = sum(1 for _ in self.layers)


class LlamaOfAnotherModel(LlamaForCausalLM):
    def _init_model(self, vllm_config: VllmConfig, prefix: str = "", layer_type: type[nn.Module] = LlamaDecoderLayer):
        return CountingModel(vllm_config=vllm_config, prefix=prefix, layer_type=layer_type)


class OlderAttention(LlamaAttention):
    """With the rotary arguments of 0.11."""

    def __init__(self, config, **options) -> None:
        super().__init__(config, rope_theta=config.rope_theta, rope_scaling=config.rope_scaling, **options)


class OlderLayer(LlamaDecoderLayer):
    """With the arguments of 0.9."""

    def __init__(self, config, cache_config=None, quant_config=None, prefix: str = "") -> None:
        given = {"config": config, "cache_config": cache_config, "quant_config": quant_config}
        super().__init__(**given, prefix=prefix, attn_layer_type=OlderAttention)


class LlamaOfOlderLayers(LlamaForCausalLM):
    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix, layer_type=OlderLayer)


class OurQwen2(Qwen2ForCausalLM):
    pass


class OurQwen3(Qwen3ForCausalLM):
    pass


class OurPhi3(LlamaForCausalLM):
    """Its checkpoints hold fused parts as they are."""

    packed_modules_mapping = {"qkv_proj": ["qkv_proj"], "gate_up_proj": ["gate_up_proj"]}


OurLlamaForEmbedding = as_embedding_model(LlamaForCausalLM)
OurLlamaForSequenceClassification = as_seq_cls_model(LlamaForCausalLM)
