"""Llama (arXiv 2302.13971) as others take it apart: each class can be replaced or derived from."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from torch import nn

from bestiary.api import IntermediateTensors, SupportsLoRA, SupportsPP, VllmConfig
from bestiary.api.protocols import SupportsEagle3
from bestiary.nn import (
    Attention,
    AttentionType,
    EncoderOnlyAttention,
    LogitsProcessor,
    MergedColumnParallelLinear,
    ParallelLMHead,
    PPMissingLayer,
    QKVParallelLinear,
    RMSNorm,
    RowParallelLinear,
    VocabParallelEmbedding,
    extract_layer_index,
    get_act_and_mul_fn,
    get_pp_group,
    get_rope,
    make_empty_intermediate_tensors_factory,
    make_layers,
    maybe_prefix,
)
from bestiary_vllm.said import old_keyword, say_once
from bestiary_vllm.shims.config import get_current_vllm_config
from bestiary_vllm.shims.eagle import EagleModelMixin
from bestiary_vllm.shims.loader import AutoWeightsLoader
from bestiary_vllm.shims.mapper import WeightsMapper


class LlamaMLP(nn.Module):
    """``down(act(gate(x)) * up(x))``."""

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        hidden_act: str,
        quant_config: Any = None,
        bias: bool = False,
        prefix: str = "",
        reduce_results: bool = True,
        disable_tp: bool = False,
    ) -> None:
        super().__init__()
        self.gate_up_proj = MergedColumnParallelLinear(
            hidden_size, [intermediate_size] * 2, bias=bias, disable_tp=disable_tp
        )
        self.down_proj = RowParallelLinear(
            intermediate_size, hidden_size, bias=bias, reduce_results=reduce_results, disable_tp=disable_tp
        )
        self.act_fn = get_act_and_mul_fn(hidden_act)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate_up, _ = self.gate_up_proj(x)
        output, _ = self.down_proj(self.act_fn(gate_up))
        return output


class LlamaAttention(nn.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(
        self,
        config: Any,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        max_position_embeddings: int = 8192,
        quant_config: Any = None,
        bias: bool = False,
        bias_o_proj: bool = False,
        cache_config: Any = None,
        prefix: str = "",
        attn_type: str = AttentionType.DECODER,
        rope_theta: float | None = None,
        rope_scaling: dict[str, Any] | None = None,
    ) -> None:
        """rope_theta, rope_scaling: until 0.13, what the configuration's `rope_parameters` say now."""
        super().__init__()
        if rope_theta is not None or rope_scaling is not None:
            old_keyword("LlamaAttention", "rope_theta", "it reads config.rope_parameters now")
            config = _with_rope(config, rope_theta, rope_scaling)
        self.hidden_size, self.max_position_embeddings = hidden_size, max_position_embeddings
        self.total_num_heads, self.total_num_kv_heads = num_heads, num_kv_heads
        self.head_dim = getattr(config, "head_dim", None) or hidden_size // num_heads
        self.qkv_proj = QKVParallelLinear(hidden_size, self.head_dim, num_heads, num_kv_heads, bias=bias)
        self.o_proj = RowParallelLinear(num_heads * self.head_dim, hidden_size, bias=bias_o_proj)
        self.num_heads, self.num_kv_heads = self.qkv_proj.num_heads, self.qkv_proj.num_kv_heads
        self.q_size, self.kv_size = self.qkv_proj.q_size, self.qkv_proj.kv_size
        self.scaling = self.head_dim**-0.5
        self._init_rotary_emb(config, quant_config)
        kind = EncoderOnlyAttention if attn_type == AttentionType.ENCODER_ONLY else Attention
        self.attn = kind(
            self.num_heads,
            self.head_dim,
            self.scaling,
            num_kv_heads=self.num_kv_heads,
            cache_config=cache_config,
            per_layer_sliding_window=_window(config, prefix),
            attn_type=attn_type,
            prefix=f"{prefix}.attn",
        )

    def _init_rotary_emb(self, config: Any, quant_config: Any) -> None:
        self.rotary_emb = get_rope(
            self.head_dim,
            max_position=self.max_position_embeddings,
            rope_parameters=getattr(config, "rope_parameters", None),
        )

    def forward(self, positions: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        qkv, _ = self.qkv_proj(hidden_states)
        q, k, v = qkv.split([self.q_size, self.kv_size, self.kv_size], dim=-1)
        q, k = self.rotary_emb(positions, q, k)
        output, _ = self.o_proj(self.attn(q, k, v))
        return output


def _window(config: Any, prefix: str) -> int | None:
    """This layer's sliding window, where the configuration goes by kinds of layers."""
    kinds = getattr(config, "layer_types", None)
    if kinds is None or kinds[extract_layer_index(prefix) % len(kinds)] != "sliding_attention":
        return None
    window: int | None = config.sliding_window
    return window


def _with_rope(config: Any, theta: float | None, scaling: dict[str, Any] | None) -> Any:
    """A copy of a configuration with other rotary parameters."""
    made = copy.copy(config)
    given = {} if theta is None else {"rope_theta": theta}
    made.rope_parameters = {"rope_type": "default", **(scaling or {}), **given}
    return made


class LlamaDecoderLayer(nn.Module):
    """Norm, attention, norm, MLP; the residual is added by the norms."""

    def __init__(
        self,
        vllm_config: VllmConfig | None = None,
        prefix: str = "",
        config: Any = None,
        attn_layer_type: type[nn.Module] = LlamaAttention,
        cache_config: Any = None,
        quant_config: Any = None,
    ) -> None:
        """cache_config, quant_config: until 0.10, given beside `config` in the place of `vllm_config`."""
        super().__init__()
        if vllm_config is None:
            old_keyword("LlamaDecoderLayer", "cache_config", "it takes vllm_config now")
            vllm_config = get_current_vllm_config()
        config = config or vllm_config.model_config.hf_config
        bias = getattr(config, "attention_bias", False) or getattr(config, "bias", False)
        self.hidden_size = config.hidden_size
        self.self_attn = attn_layer_type(
            config=config,
            hidden_size=config.hidden_size,
            num_heads=config.num_attention_heads,
            num_kv_heads=getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
            max_position_embeddings=getattr(config, "max_position_embeddings", 8192),
            quant_config=vllm_config.quant_config,
            bias=getattr(config, "qkv_bias", bias),
            bias_o_proj=bias,
            cache_config=vllm_config.cache_config,
            prefix=f"{prefix}.self_attn",
            attn_type=AttentionType.DECODER if getattr(config, "is_causal", True) else AttentionType.ENCODER_ONLY,
        )
        self.mlp = LlamaMLP(
            config.hidden_size,
            config.intermediate_size,
            config.hidden_act,
            bias=getattr(config, "mlp_bias", False),
            prefix=f"{prefix}.mlp",
        )
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self, positions: torch.Tensor, hidden_states: torch.Tensor, residual: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if residual is None:
            residual = hidden_states
            hidden_states = self.input_layernorm(hidden_states)
        else:
            hidden_states, residual = self.input_layernorm(hidden_states, residual)
        hidden_states = self.self_attn(positions=positions, hidden_states=hidden_states)
        hidden_states, residual = self.post_attention_layernorm(hidden_states, residual)
        return self.mlp(hidden_states), residual


def _layer(layer_type: Any, vllm_config: VllmConfig, prefix: str) -> Any:
    """A layer of a class that others wrote, with the arguments that it takes."""
    takes = inspect.signature(layer_type).parameters
    if "vllm_config" in takes or "config" not in takes:
        return layer_type(vllm_config=vllm_config, prefix=prefix)
    say_once(f"{layer_type.__name__}(config, cache_config, quant_config, …): layers take vllm_config and prefix now")
    config, cache, quant = vllm_config.model_config.hf_config, vllm_config.cache_config, vllm_config.quant_config
    return layer_type(config=config, cache_config=cache, quant_config=quant, prefix=prefix)


class LlamaModel(nn.Module, EagleModelMixin):
    """Embedding, this stage's layers, norm."""

    def __init__(
        self, *, vllm_config: VllmConfig, prefix: str = "", layer_type: type[nn.Module] = LlamaDecoderLayer
    ) -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        self.config, self.quant_config, self.vocab_size = config, vllm_config.quant_config, config.vocab_size
        stage = get_pp_group()
        embeds = stage.is_first_rank or (config.tie_word_embeddings and stage.is_last_rank)
        self.embed_tokens = (
            VocabParallelEmbedding(config.vocab_size, config.hidden_size) if embeds else PPMissingLayer()
        )
        self.start_layer, self.end_layer, self.layers = make_layers(
            config.num_hidden_layers,
            lambda prefix: _layer(layer_type, vllm_config, prefix),
            prefix=f"{prefix}.layers",
        )
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps) if stage.is_last_rank else PPMissingLayer()
        self.make_empty_intermediate_tensors = make_empty_intermediate_tensors_factory(
            ["hidden_states", "residual"], config.hidden_size
        )

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.embed_tokens(input_ids)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **options: Any,
    ) -> Any:
        residual: Any = None
        if intermediate_tensors is not None:
            hidden_states, residual = intermediate_tensors["hidden_states"], intermediate_tensors["residual"]
        else:
            hidden_states = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        chosen: list[torch.Tensor] = []
        for index, layer in enumerate(islice(self.layers, self.start_layer, self.end_layer), self.start_layer):
            self._maybe_add_hidden_state(chosen, index, hidden_states, residual)
            hidden_states, residual = layer(positions, hidden_states, residual, **options)
        if not get_pp_group().is_last_rank:
            return IntermediateTensors({"hidden_states": hidden_states, "residual": residual})
        hidden_states, _ = self.norm(hidden_states, residual)
        return (hidden_states, chosen) if chosen else hidden_states


class LlamaForCausalLM(nn.Module, SupportsLoRA, SupportsPP, SupportsEagle3):
    """The model and its head. What derives from it may override `_init_model`."""

    packed_modules_mapping = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
    embedding_modules = {"embed_tokens": "input_embeddings", "lm_head": "output_embeddings"}
    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_stacked={
            ".q_proj": (".qkv_proj", "q"),
            ".k_proj": (".qkv_proj", "k"),
            ".v_proj": (".qkv_proj", "v"),
            ".gate_proj": (".gate_up_proj", 0),
            ".up_proj": (".gate_up_proj", 1),
        }
    )

    def __init__(
        self, *, vllm_config: VllmConfig, prefix: str = "", layer_type: type[nn.Module] = LlamaDecoderLayer
    ) -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        self.config = config
        self.model = self._init_model(vllm_config, maybe_prefix(prefix, "model"), layer_type)
        if get_pp_group().is_last_rank:
            self.lm_head: nn.Module = ParallelLMHead(config.vocab_size, config.hidden_size)
            if config.tie_word_embeddings:
                self.lm_head = self.lm_head.tie_weights(self.model.embed_tokens)
            self.logits_processor = LogitsProcessor(config.vocab_size, scale=getattr(config, "logit_scale", 1.0))
        else:
            self.lm_head = PPMissingLayer()

    def make_empty_intermediate_tensors(
        self, batch_size: int, dtype: torch.dtype, device: torch.device
    ) -> IntermediateTensors:
        made: IntermediateTensors = self.model.make_empty_intermediate_tensors(batch_size, dtype, device)
        return made

    def _init_model(
        self, vllm_config: VllmConfig, prefix: str = "", layer_type: type[nn.Module] = LlamaDecoderLayer
    ) -> Any:
        return LlamaModel(vllm_config=vllm_config, prefix=prefix, layer_type=layer_type)

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.model.embed_input_ids(input_ids)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> Any:
        return self.model(input_ids, positions, intermediate_tensors, inputs_embeds)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        return self.logits_processor(self.lm_head, hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        return AutoWeightsLoader(self).load_weights(weights, mapper=self.hf_to_vllm_mapper)
