"""A small decoder for the tests of the kit, which change a line of it and look which check notices."""

import torch
from torch import nn

from bestiary.api import IntermediateTensors, SupportsLoRA, SupportsPP
from bestiary.nn import (
    Attention,
    AutoWeightsLoader,
    LogitsProcessor,
    ParallelLMHead,
    QKVParallelLinear,
    RMSNorm,
    RowParallelLinear,
    VocabParallelEmbedding,
    get_pp_group,
    get_rope,
    make_layers,
)


class TinyLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        head_dim = config.hidden_size // config.num_attention_heads
        self.norm = RMSNorm(config.hidden_size, eps=config.eps)
        self.qkv = QKVParallelLinear(
            config.hidden_size, head_dim, config.num_attention_heads, config.num_key_value_heads
        )
        self.out = RowParallelLinear(config.hidden_size, config.hidden_size)
        self.rotary = get_rope(
            head_dim, max_position=config.max_position_embeddings, rope_parameters=config.rope_parameters
        )
        self.attn = Attention(self.qkv.num_heads, head_dim, scale=head_dim**-0.5, num_kv_heads=self.qkv.num_kv_heads)

    def forward(self, positions, hidden_states):
        qkv, _ = self.qkv(self.norm(hidden_states))
        q, k, v = qkv.split(self.qkv.split_sizes, dim=-1)
        q, k = self.rotary(positions, q, k)
        output, _ = self.out(self.attn(q, k, v))
        return hidden_states + output


class TinyForCausalLM(nn.Module, SupportsLoRA, SupportsPP):
    packed_modules_mapping = {"qkv": ["q", "k", "v"]}
    embedding_modules = {"embed": "input_embeddings", "lm_head": "output_embeddings"}

    def __init__(self, *, vllm_config, prefix=""):
        super().__init__()
        self.config = config = vllm_config.model_config.hf_config
        self.embed = VocabParallelEmbedding(config.vocab_size, config.hidden_size)
        self.start, self.end, self.layers = make_layers(config.num_hidden_layers, lambda prefix: TinyLayer(config))
        self.norm = RMSNorm(config.hidden_size, eps=config.eps)
        self.lm_head = ParallelLMHead(config.vocab_size, config.hidden_size)
        self.logits_processor = LogitsProcessor(config.vocab_size)

    def embed_input_ids(self, input_ids):
        return self.embed(input_ids)

    def forward(self, input_ids, positions, intermediate_tensors=None, inputs_embeds=None):
        if intermediate_tensors is not None:
            hidden_states = intermediate_tensors["hidden_states"]
        else:
            hidden_states = self.embed_input_ids(input_ids) if inputs_embeds is None else inputs_embeds
        for layer in self.layers[self.start : self.end]:
            hidden_states = layer(positions, hidden_states)
        if not get_pp_group().is_last_rank:
            return IntermediateTensors({"hidden_states": hidden_states})
        return self.norm(hidden_states)

    def compute_logits(self, hidden_states):
        return self.logits_processor(self.lm_head, hidden_states)

    def make_empty_intermediate_tensors(self, batch_size, dtype, device):
        shape = (batch_size, self.config.hidden_size)
        return IntermediateTensors({"hidden_states": torch.zeros(shape, dtype=dtype, device=device)})

    def load_weights(self, weights):
        return AutoWeightsLoader(self).load_weights(weights)
