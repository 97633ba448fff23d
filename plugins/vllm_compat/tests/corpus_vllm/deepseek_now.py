"""DeepSeek V2 and V3 as a file for vLLM 0.33 has them: latent attention, or its heads written out; a mixture of experts
in groups, beside shared experts."""

from collections.abc import Iterable

import torch
from torch import nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.distributed import get_tensor_model_parallel_world_size
from vllm.model_executor.layers.activation import SiluAndMul
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.fused_moe import FusedMoEFactory, GateLinear
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
)
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.mla import MLAModules, MultiHeadLatentAttentionWrapper
from vllm.model_executor.layers.rotary_embedding import get_rope
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.models.interfaces import SupportsLoRA
from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper, maybe_prefix


def yarn_scale(factor: float, weight: float) -> float:
    return 0.1 * weight * torch.tensor(factor).log().item() + 1.0


class MLP(nn.Module):
    def __init__(self, vllm_config: VllmConfig, width: int, prefix: str, reduce_results: bool = True) -> None:
        super().__init__()
        hidden, quant = vllm_config.model_config.hf_config.hidden_size, vllm_config.quant_config
        self.gate_up_proj = MergedColumnParallelLinear(
            hidden, [width] * 2, bias=False, quant_config=quant, prefix=f"{prefix}.gate_up_proj"
        )
        self.down_proj = RowParallelLinear(
            width, hidden, bias=False, quant_config=quant, reduce_results=reduce_results, prefix=f"{prefix}.down_proj"
        )
        self.act_fn = SiluAndMul()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.gate_up_proj(x)[0]))[0]


class MoE(nn.Module):
    def __init__(self, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        self.gate = GateLinear(config.hidden_size, config.n_routed_experts, bias=False, prefix=f"{prefix}.gate")
        self.gate.e_score_correction_bias = None
        sigmoid = config.model_type == "deepseek_v3"
        if sigmoid:
            self.gate.e_score_correction_bias = nn.Parameter(torch.empty(config.n_routed_experts, dtype=torch.float32))
        self.shared_experts = MLP(
            vllm_config, config.moe_intermediate_size * config.n_shared_experts, f"{prefix}.shared_experts", False
        )
        self.experts = FusedMoEFactory(
            shared_experts=self.shared_experts,
            gate=self.gate,
            num_experts=config.n_routed_experts,
            top_k=config.num_experts_per_tok,
            hidden_size=config.hidden_size,
            intermediate_size=config.moe_intermediate_size,
            renormalize=config.norm_topk_prob,
            quant_config=vllm_config.quant_config,
            use_grouped_topk=sigmoid,
            num_expert_group=config.n_group if sigmoid else None,
            topk_group=config.topk_group if sigmoid else None,
            scoring_func="sigmoid" if sigmoid else "softmax",
            routed_scaling_factor=config.routed_scaling_factor,
            e_score_correction_bias=self.gate.e_score_correction_bias,
            prefix=f"{prefix}.experts",
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.experts(hidden_states=x, router_logits=x)


class Projections(nn.Module):
    """What both kinds of attention have."""

    def __init__(self, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        config, quant = vllm_config.model_config.hf_config, vllm_config.quant_config
        self.rank, self.low = config.kv_lora_rank, config.q_lora_rank
        self.nope, self.rope, self.v = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
        self.heads = config.num_attention_heads // get_tensor_model_parallel_world_size()
        hidden, queries = config.hidden_size, config.num_attention_heads * (self.nope + self.rope)
        kept = self.rank + self.rope
        self.fused_qkv_a_proj = self.kv_a_proj_with_mqa = self.q_a_layernorm = self.q_b_proj = self.q_proj = None
        if self.low is None:
            self.q_proj = ColumnParallelLinear(
                hidden, queries, bias=False, quant_config=quant, prefix=f"{prefix}.q_proj"
            )
            self.kv_a_proj_with_mqa = ReplicatedLinear(
                hidden, kept, bias=False, quant_config=quant, prefix=f"{prefix}.kv_a_proj_with_mqa"
            )
        else:
            self.fused_qkv_a_proj = MergedColumnParallelLinear(
                hidden, [self.low, kept], bias=False, quant_config=quant, prefix=f"{prefix}.fused_qkv_a_proj",
                disable_tp=True,
            )  # fmt: skip
            self.q_a_layernorm = RMSNorm(self.low, eps=config.rms_norm_eps)
            self.q_b_proj = ColumnParallelLinear(
                self.low, queries, bias=False, quant_config=quant, prefix=f"{prefix}.q_b_proj"
            )
        self.kv_a_layernorm = RMSNorm(self.rank, eps=config.rms_norm_eps)
        self.kv_b_proj = ColumnParallelLinear(
            self.rank, config.num_attention_heads * (self.nope + self.v), bias=False, quant_config=quant,
            prefix=f"{prefix}.kv_b_proj",
        )  # fmt: skip
        self.o_proj = RowParallelLinear(
            config.num_attention_heads * self.v, hidden, bias=False, quant_config=quant, prefix=f"{prefix}.o_proj"
        )
        self.scaling = (self.nope + self.rope) ** -0.5
        parameters = config.rope_parameters
        if parameters["rope_type"] != "default":
            parameters["rope_type"] = "deepseek_yarn"
            self.scaling *= yarn_scale(parameters["factor"], parameters["mscale_all_dim"]) ** 2
        self.rotary_emb = get_rope(
            self.rope,
            max_position=config.max_position_embeddings,
            rope_parameters=parameters,
            is_neox_style=False,
        )


class LatentAttention(Projections):
    def __init__(self, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__(vllm_config, prefix)
        modules = MLAModules(
            kv_a_layernorm=self.kv_a_layernorm,
            kv_b_proj=self.kv_b_proj,
            rotary_emb=self.rotary_emb,
            o_proj=self.o_proj,
            fused_qkv_a_proj=self.fused_qkv_a_proj,
            kv_a_proj_with_mqa=self.kv_a_proj_with_mqa,
            q_a_layernorm=self.q_a_layernorm,
            q_b_proj=self.q_b_proj,
            q_proj=self.q_proj,
            indexer=None,
            is_sparse=False,
            topk_indices_buffer=None,
        )
        self.mla_attn = MultiHeadLatentAttentionWrapper(
            vllm_config.model_config.hf_config.hidden_size,
            self.heads,
            self.scaling,
            self.nope,
            self.rope,
            self.v,
            self.low,
            self.rank,
            modules,
            vllm_config.cache_config,
            vllm_config.quant_config,
            prefix,
        )

    def forward(self, positions: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.mla_attn(positions, hidden_states)


class HeadsWrittenOut(Projections):
    """The same with keys and values of each head in the cache, values narrower than keys."""

    def __init__(self, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__(vllm_config, prefix)
        self.attn = Attention(
            self.heads, self.nope + self.rope, self.scaling, num_kv_heads=self.heads, head_size_v=self.v,
            cache_config=vllm_config.cache_config, quant_config=vllm_config.quant_config, prefix=f"{prefix}.attn",
        )  # fmt: skip

    def forward(self, positions: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.low is None:
            query, latent = self.q_proj(hidden_states)[0], self.kv_a_proj_with_mqa(hidden_states)[0]
        else:
            low, latent = self.fused_qkv_a_proj(hidden_states)[0].split([self.low, self.rank + self.rope], -1)
            query = self.q_b_proj(self.q_a_layernorm(low))[0]
        query = query.view(-1, self.heads, self.nope + self.rope)
        compressed, rotated = latent.split([self.rank, self.rope], -1)
        made = self.kv_b_proj(self.kv_a_layernorm(compressed))[0].view(-1, self.heads, self.nope + self.v)
        key, value = made.split([self.nope, self.v], -1)
        query[..., self.nope :], rotated = self.rotary_emb(positions, query[..., self.nope :], rotated[:, None])
        key = torch.cat((key, rotated.expand(-1, self.heads, -1)), -1)
        output = self.attn(query.flatten(1), key.flatten(1), value.flatten(1), output_shape=value.flatten(1).shape)
        return self.o_proj(output)[0]


class Layer(nn.Module):
    def __init__(self, vllm_config: VllmConfig, prefix: str, index: int) -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        kind = LatentAttention if vllm_config.model_config.use_mla else HeadsWrittenOut
        self.self_attn = kind(vllm_config, f"{prefix}.self_attn")
        if index < config.first_k_dense_replace:
            self.mlp = MLP(vllm_config, config.intermediate_size, f"{prefix}.mlp")
        else:
            self.mlp = MoE(vllm_config, f"{prefix}.mlp")
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self, positions: torch.Tensor, hidden_states: torch.Tensor, residual: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if residual is None:
            hidden_states, residual = self.input_layernorm(hidden_states), hidden_states
        else:
            hidden_states, residual = self.input_layernorm(hidden_states, residual)
        hidden_states = self.self_attn(positions, hidden_states)
        hidden_states, residual = self.post_attention_layernorm(hidden_states, residual)
        return self.mlp(hidden_states), residual


@support_torch_compile
class Model(nn.Module):
    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        self.embed_tokens = VocabParallelEmbedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            Layer(vllm_config, f"{prefix}.layers.{index}", index) for index in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, input_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        hidden_states, residual = self.embed_tokens(input_ids), None
        for layer in self.layers:
            hidden_states, residual = layer(positions, hidden_states, residual)
        return self.norm(hidden_states, residual)[0]


class DeepseekV3ForCausalLM(nn.Module, SupportsLoRA):
    packed_modules_mapping = {
        "gate_up_proj": ["gate_proj", "up_proj"],
        "fused_qkv_a_proj": ["q_a_proj", "kv_a_proj_with_mqa"],
    }

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        self.model = Model(vllm_config=vllm_config, prefix=maybe_prefix(prefix, "model"))
        self.lm_head = ParallelLMHead(config.vocab_size, config.hidden_size, prefix=maybe_prefix(prefix, "lm_head"))
        self.logits_processor = LogitsProcessor(config.vocab_size)
        stacked = {
            f".{where}.{part}_proj": (f".{where}.gate_up_proj", index)
            for where in ("mlp", "shared_experts")
            for index, part in enumerate(("gate", "up"))
        }
        if config.q_lora_rank is not None:
            stacked |= {".q_a_proj": (".fused_qkv_a_proj", 0), ".kv_a_proj_with_mqa": (".fused_qkv_a_proj", 1)}
        self.mapper = WeightsMapper(orig_to_new_stacked=stacked)

    def forward(self, input_ids, positions, intermediate_tensors=None, inputs_embeds=None) -> torch.Tensor:
        return self.model(input_ids, positions)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.logits_processor(self.lm_head, hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        return AutoWeightsLoader(self).load_weights(weights, mapper=self.mapper)


class DeepseekV2ForCausalLM(DeepseekV3ForCausalLM):
    pass
