"""gpt-oss as a file for vLLM 0.33 has it: a sink for each head, windows in every other layer, experts with biases that
are loaded by hand."""

from collections.abc import Iterable

import torch
from torch import nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.fused_moe import FusedMoEFactory, GateLinear
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import QKVParallelLinear, RowParallelLinear
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.rotary_embedding import get_rope
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.model_loader.weight_utils import default_weight_loader
from vllm.model_executor.models.utils import extract_layer_index, maybe_prefix


class Attn(nn.Module):
    def __init__(self, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        config, ranks = vllm_config.model_config.hf_config, get_tensor_model_parallel_world_size()
        size = self.head_dim = config.head_dim
        self.heads, self.kv_heads = config.num_attention_heads // ranks, max(1, config.num_key_value_heads // ranks)
        self.qkv = QKVParallelLinear(
            config.hidden_size, size, config.num_attention_heads, config.num_key_value_heads, bias=True
        )
        self.o_proj = RowParallelLinear(config.num_attention_heads * size, config.hidden_size, bias=True)
        self.sinks = nn.Parameter(torch.empty(self.heads), requires_grad=False)
        self.rotary_emb = get_rope(
            size, max_position=config.max_position_embeddings, rope_parameters=config.rope_parameters,
            dtype=torch.float32, is_neox_style=True,
        )  # fmt: skip
        self.attn = Attention(
            self.heads,
            size,
            size**-0.5,
            num_kv_heads=self.kv_heads,
            cache_config=vllm_config.cache_config,
            quant_config=vllm_config.quant_config,
            per_layer_sliding_window=config.sliding_window if extract_layer_index(prefix) % 2 == 0 else None,
            prefix=f"{prefix}.attn",
            sinks=self.sinks,
        )

    def forward(self, positions: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        widths = [self.heads * self.head_dim, self.kv_heads * self.head_dim, self.kv_heads * self.head_dim]
        q, k, v = self.qkv(hidden_states)[0].split(widths, dim=-1)
        q, k = self.rotary_emb(positions, q, k)
        return self.o_proj(self.attn(q, k, v))[0]


class MoE(nn.Module):
    def __init__(self, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        self.router = GateLinear(config.hidden_size, config.num_local_experts, bias=True, return_bias=False)
        self.experts = FusedMoEFactory(
            num_experts=config.num_local_experts,
            top_k=config.num_experts_per_tok,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            renormalize=True,
            prefix=f"{prefix}.experts",
            has_bias=True,
            activation="swigluoai",
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.experts(hidden_states=x, router_logits=self.router(x))


class Layer(nn.Module):
    def __init__(self, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        self.self_attn, self.mlp = Attn(vllm_config, f"{prefix}.self_attn"), MoE(vllm_config, f"{prefix}.mlp")
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, positions: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        x = x + self.self_attn(positions, self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


@support_torch_compile
class Model(nn.Module):
    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        self.embed_tokens = VocabParallelEmbedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            Layer(vllm_config, f"{prefix}.layers.{index}") for index in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, input_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        x = self.embed_tokens(input_ids)
        for layer in self.layers:
            x = layer(positions, x)
        return self.norm(x)


EXPERTS = {"gate_up_proj": "w13_weight", "down_proj": "w2_weight"}
EXPERTS |= {"gate_up_proj_bias": "w13_bias", "down_proj_bias": "w2_bias"}


def part_of_experts(leaf: str, tensor: torch.Tensor) -> torch.Tensor:
    """This rank's, of gates and ups that alternate, and of biases that only one rank adds."""
    rank, ranks = get_tensor_model_parallel_rank(), get_tensor_model_parallel_world_size()
    if leaf == "down_proj_bias":
        return tensor if rank == 0 else torch.zeros_like(tensor)
    part = tensor.chunk(ranks, 1 if leaf == "down_proj" else -1)[rank]
    return part.transpose(1, 2) if part.dim() == 3 else part


class GptOssForCausalLM(nn.Module):
    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        self.model = Model(vllm_config=vllm_config, prefix=maybe_prefix(prefix, "model"))
        self.lm_head = ParallelLMHead(config.vocab_size, config.hidden_size, prefix=maybe_prefix(prefix, "lm_head"))
        self.logits_processor = LogitsProcessor(config.vocab_size)

    def forward(self, input_ids, positions, intermediate_tensors=None, inputs_embeds=None) -> torch.Tensor:
        return self.model(input_ids, positions)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.logits_processor(self.lm_head, hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        params, loaded = dict(self.named_parameters()), set()
        rank = get_tensor_model_parallel_rank()
        for name, tensor in weights:
            before, _, leaf = name.rpartition(".")
            if before.endswith("mlp.experts"):
                name = f"{before}.routed_experts.{EXPERTS[leaf]}"
                params[name].copy_(part_of_experts(leaf, tensor))
            elif leaf == "sinks":
                heads = params[name].numel()
                default_weight_loader(params[name], tensor.narrow(0, rank * heads, heads))
            elif shard := next((each for each in "qkv" if f".{each}_proj." in name), None):
                name = name.replace(f"{shard}_proj", "qkv")
                params[name].weight_loader(params[name], tensor, shard)
            else:
                param = params[name]
                getattr(param, "weight_loader", default_weight_loader)(param, tensor)
            loaded.add(name)
        return loaded
