"""Hybrids as files for vLLM 0.33 have them: layers with attention among layers with a state.

LFM2, whose other layers convolve; Qwen3-Next, whose other layers are gated delta nets, here without experts.
"""

from collections.abc import Iterable

import torch
from torch import nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.distributed import get_pp_group, get_tensor_model_parallel_world_size
from vllm.model_executor.layers.activation import SiluAndMul
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.layernorm import GemmaRMSNorm, RMSNorm
from vllm.model_executor.layers.linear import MergedColumnParallelLinear, QKVParallelLinear, RowParallelLinear
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.mamba.gdn.qwen_gdn_linear_attn import QwenGatedDeltaNetAttention
from vllm.model_executor.layers.mamba.mamba_utils import MambaStateDtypeCalculator, MambaStateShapeCalculator
from vllm.model_executor.layers.mamba.short_conv import ShortConv
from vllm.model_executor.layers.rotary_embedding import get_rope
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.models.interfaces import HasInnerState, IsHybrid
from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper, extract_layer_index, maybe_prefix

QKV = {".q_proj": (".qkv_proj", "q"), ".k_proj": (".qkv_proj", "k"), ".v_proj": (".qkv_proj", "v")}


class Attn(nn.Module):
    """Heads normed before they are rotated; with `gated`, a query has a gate beside it."""

    def __init__(self, vllm_config: VllmConfig, prefix: str, norm: type, gated: bool = False) -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        tp = get_tensor_model_parallel_world_size()
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.heads = config.num_attention_heads // tp
        self.kv_heads = max(1, config.num_key_value_heads // tp)
        self.gated = gated
        eps = getattr(config, "norm_eps", None) or config.rms_norm_eps
        self.qkv_proj = QKVParallelLinear(
            config.hidden_size,
            self.head_dim,
            config.num_attention_heads * (1 + gated),
            config.num_key_value_heads,
            bias=False,
            quant_config=vllm_config.quant_config,
            prefix=f"{prefix}.qkv_proj",
        )
        self.out_proj = RowParallelLinear(
            config.num_attention_heads * self.head_dim,
            config.hidden_size,
            bias=False,
            quant_config=vllm_config.quant_config,
            prefix=f"{prefix}.out_proj",
        )
        self.rotary_emb = get_rope(
            self.head_dim, max_position=config.max_position_embeddings, rope_parameters=config.rope_parameters
        )
        self.attn = Attention(
            self.heads,
            self.head_dim,
            self.head_dim**-0.5,
            num_kv_heads=self.kv_heads,
            cache_config=vllm_config.cache_config,
            prefix=f"{prefix}.attn",
        )
        self.q_norm = norm(self.head_dim, eps=eps)
        self.k_norm = norm(self.head_dim, eps=eps)

    def forward(self, positions: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        tokens, kv = len(hidden_states), self.kv_heads * self.head_dim
        qkv, _ = self.qkv_proj(hidden_states)
        q, k, v = qkv.split([self.heads * self.head_dim * (1 + self.gated), kv, kv], dim=-1)
        q, gate = q.view(tokens, self.heads, -1).chunk(2, -1) if self.gated else (q, None)
        q = self.q_norm(q.reshape(tokens, self.heads, -1)).view(tokens, -1)
        k = self.k_norm(k.view(tokens, self.kv_heads, -1)).view(tokens, -1)
        q, k = self.rotary_emb(positions, q, k)
        out = self.attn(q, k, v)
        if gate is not None:
            out = out * torch.sigmoid(gate.reshape(tokens, -1))
        output, _ = self.out_proj(out)
        return output


class MLP(nn.Module):
    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.gate_up = MergedColumnParallelLinear(hidden_size, [width] * 2, bias=False)
        self.down = RowParallelLinear(width, hidden_size, bias=False)
        self.act_fn = SiluAndMul()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate_up, _ = self.gate_up(x)
        output, _ = self.down(self.act_fn(gate_up))
        return output


class ConvLayer(nn.Module):
    def __init__(self, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        index = extract_layer_index(prefix)
        self.is_attention = config.layer_types[index] == "full_attention"
        if self.is_attention:
            self.self_attn = Attn(vllm_config, f"{prefix}.self_attn", RMSNorm)
        else:
            self.short_conv = ShortConv(
                config=config,
                dim=config.hidden_size,
                layer_idx=index,
                model_config=vllm_config.model_config,
                cache_config=vllm_config.cache_config,
                quant_config=vllm_config.quant_config,
                prefix=f"{prefix}.short_conv",
            )
        self.feed_forward = MLP(config.hidden_size, config.intermediate_size)
        self.operator_norm = RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.ffn_norm = RMSNorm(config.hidden_size, eps=config.norm_eps)

    def forward(self, positions: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        normed = self.operator_norm(hidden_states)
        if self.is_attention:
            mixed = self.self_attn(positions, normed)
        else:
            mixed = torch.empty_like(normed)
            self.short_conv(normed, mixed)
        normed, hidden_states = self.ffn_norm(mixed, hidden_states)
        return hidden_states + self.feed_forward(normed)


class DeltaLayer(nn.Module):
    def __init__(self, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        if config.layer_types[extract_layer_index(prefix)] == "linear_attention":
            self.linear_attn = QwenGatedDeltaNetAttention(
                config, vllm_config=vllm_config, prefix=f"{prefix}.linear_attn", gqa_interleaved_layout=True
            )
        else:
            self.self_attn = Attn(vllm_config, f"{prefix}.self_attn", GemmaRMSNorm, gated=True)
        self.mlp = MLP(config.hidden_size, config.intermediate_size)
        self.input_layernorm = GemmaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = GemmaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, positions: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        normed = self.input_layernorm(hidden_states)
        if hasattr(self, "linear_attn"):
            mixed = self.linear_attn(hidden_states=normed)
        else:
            mixed = self.self_attn(positions, normed)
        normed, hidden_states = self.post_attention_layernorm(mixed, hidden_states)
        return hidden_states + self.mlp(normed)


@support_torch_compile
class Model(nn.Module):
    def __init__(self, *, vllm_config: VllmConfig, layer_type: type, norm_name: str, prefix: str = "") -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        self.embed_tokens = VocabParallelEmbedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            layer_type(vllm_config, f"{prefix}.layers.{index}") for index in range(config.num_hidden_layers)
        )
        self.norm_name = norm_name
        norm = GemmaRMSNorm if layer_type is DeltaLayer else RMSNorm
        setattr(self, norm_name, norm(config.hidden_size, eps=getattr(config, "norm_eps", None) or config.rms_norm_eps))

    def forward(self, input_ids: torch.Tensor, positions: torch.Tensor, inputs_embeds: torch.Tensor | None):
        hidden_states = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        for layer in self.layers:
            hidden_states = layer(positions, hidden_states)
        return getattr(self, self.norm_name)(hidden_states)


class Hybrid(nn.Module, HasInnerState, IsHybrid):
    layer_type: type
    norm_name = "norm"

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        assert get_pp_group().world_size == 1
        self.model = Model(
            vllm_config=vllm_config,
            layer_type=self.layer_type,
            norm_name=self.norm_name,
            prefix=maybe_prefix(prefix, "model"),
        )
        self.lm_head = ParallelLMHead(config.vocab_size, config.hidden_size, prefix=maybe_prefix(prefix, "lm_head"))
        if config.tie_word_embeddings:
            self.lm_head = self.lm_head.tie_weights(self.model.embed_tokens)
        self.logits_processor = LogitsProcessor(config.vocab_size)

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.model.embed_tokens(input_ids)

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        intermediate_tensors: object = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return self.model(input_ids, positions, inputs_embeds)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.logits_processor(self.lm_head, hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        return AutoWeightsLoader(self).load_weights(weights, mapper=self.hf_to_vllm_mapper)


class Lfm2ForCausalLM(Hybrid):
    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_substr={
            ".conv.": ".short_conv.",
            "q_layernorm": "q_norm",
            "k_layernorm": "k_norm",
            "feed_forward.w2": "feed_forward.down",
        },
        orig_to_new_stacked={
            **QKV,
            "feed_forward.w1": ("feed_forward.gate_up", 0),
            "feed_forward.w3": ("feed_forward.gate_up", 1),
        },
    )
    layer_type, norm_name = ConvLayer, "embedding_norm"

    @classmethod
    def get_mamba_state_dtype_from_config(cls, vllm_config: VllmConfig) -> tuple[torch.dtype, ...]:
        return MambaStateDtypeCalculator.short_conv_state_dtype(
            vllm_config.model_config.dtype, vllm_config.cache_config.mamba_cache_dtype
        )

    @classmethod
    def get_mamba_state_shape_from_config(cls, vllm_config: VllmConfig) -> tuple[tuple[int, ...], ...]:
        config = vllm_config.model_config.hf_config
        return MambaStateShapeCalculator.short_conv_state_shape(
            tp_world_size=vllm_config.parallel_config.tensor_parallel_size,
            intermediate_size=config.hidden_size,
            conv_kernel=config.conv_L_cache,
        )


class Qwen3NextForCausalLM(Hybrid):
    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_substr={"self_attn.o_proj": "self_attn.out_proj", "mlp.down_proj": "mlp.down"},
        orig_to_new_stacked={**QKV, "mlp.gate_proj": ("mlp.gate_up", 0), "mlp.up_proj": ("mlp.gate_up", 1)},
    )
    layer_type = DeltaLayer

    @classmethod
    def get_mamba_state_dtype_from_config(cls, vllm_config: VllmConfig) -> tuple[torch.dtype, ...]:
        cache = vllm_config.cache_config
        return MambaStateDtypeCalculator.gated_delta_net_state_dtype(
            vllm_config.model_config.dtype, cache.mamba_cache_dtype, cache.mamba_ssm_cache_dtype
        )

    @classmethod
    def get_mamba_state_shape_from_config(cls, vllm_config: VllmConfig) -> tuple[tuple[int, ...], ...]:
        config = vllm_config.model_config.hf_text_config
        return MambaStateShapeCalculator.gated_delta_net_state_shape(
            vllm_config.parallel_config.tensor_parallel_size,
            config.linear_num_key_heads,
            config.linear_num_value_heads,
            config.linear_key_head_dim,
            config.linear_value_head_dim,
            config.linear_conv_kernel_dim,
        )
