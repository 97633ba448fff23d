"""Small mistakes in model files, each of which the contracts must notice.

A mistake is a replacement of text that stands in the file exactly once. `python -m tests.mutations.run` tries all of
them and writes what noticed each into docs/mutations.md.
"""

from __future__ import annotations

from typing import NamedTuple


class Mutation(NamedTuple):
    """contract: ``module:Class``. The mutated file is `module`'s; `old` stands in it once.

    first: the check to try before all others, for a mistake that one process cannot notice.
    """

    contract: str
    module: str
    what: str
    old: str
    new: str
    first: str = ""


def _of(contract: str, module: str, *mistakes: tuple[str, str, str], first: str = "") -> list[Mutation]:
    return [Mutation(contract, module, *mistake, first) for mistake in mistakes]


MUTATIONS = [
    *_of(
        "llama_plugin.contract:TestLlama",
        "llama_plugin.llama",
        ("swap gate and up", '["gate_proj", "up_proj"]', '["up_proj", "gate_proj"]'),
        ("swap k and v", "q, k, v = qkv.split", "q, v, k = qkv.split"),
        ("swap the names of k and v", '["q_proj", "k_proj", "v_proj"]', '["q_proj", "v_proj", "k_proj"]'),
        ("swap the two norms of a block", "self.post_attention_layernorm(hidden_states, residual)",
         "self.input_layernorm(hidden_states, residual)"),
        ("drop the bias of the output projection", "config.num_attention_heads * head_dim, config.hidden_size, bias=bias",
         "config.num_attention_heads * head_dim, config.hidden_size, bias=False"),
        ("drop the bias of the MLP", "config.intermediate_size, config.hidden_size, bias=bias",
         "config.intermediate_size, config.hidden_size, bias=False"),
        ("query one position too far", "self.attn(q, k, v, positions=positions)",
         "self.attn(self.rotary_emb(torch.ones_like(positions), q, k)[0], k, v, positions=positions)"),
        ("forget to rotate", "positions=positions)", "positions=torch.zeros_like(positions))"),
        ("rotate interleaved pairs", "rope_parameters=config.rope_parameters",
         "rope_parameters=config.rope_parameters, is_neox_style=False"),
        ("ignore the rotary scaling", "rope_parameters=config.rope_parameters",
         'rope_parameters={"rope_type": "default", "rope_theta": 10_000.0}'),
        ("wrong scale", "scale=head_dim**-0.5", "scale=head_dim**-0.25"),
        ("scale by the hidden size", "scale=head_dim**-0.5", "scale=config.hidden_size**-0.5"),
        ("lose the residual", "return self.mlp(hidden_states), residual", "return self.mlp(hidden_states), hidden_states"),
        ("lose the last norm", "hidden_states, _ = self.norm(hidden_states, residual)",
         "hidden_states = hidden_states + residual"),
        ("norms with another epsilon", "self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)",
         "self.norm = RMSNorm(config.hidden_size, eps=100 * config.rms_norm_eps)"),
        ("always SiLU", "get_act_and_mul_fn(config.hidden_act)", 'get_act_and_mul_fn("silu")'),
        ("one layer too few", "islice(self.layers, self.start_layer, self.end_layer)",
         "islice(self.layers, self.start_layer, self.end_layer - 1)"),
        ("forget to tie the head", "if config.tie_word_embeddings:", "if False:"),
        ("ignore head_dim", 'getattr(config, "head_dim", None) or config.hidden_size',
         "config.hidden_size"),
        ("a stage that sends no residual", 'intermediate_tensors["hidden_states"], intermediate_tensors["residual"]',
         'intermediate_tensors["hidden_states"], torch.zeros_like(intermediate_tensors["residual"])'),
        ("a state kept from step to step", "hidden_states = self.self_attn(positions, hidden_states)",
         "self.seen = getattr(self, 'seen', 0) + 1e-3\n        hidden_states = self.self_attn(positions, hidden_states)"
         " + self.seen"),
        ("embeddings that are given, ignored", "self.embed_input_ids(input_ids) if inputs_embeds is None else inputs_embeds",
         "self.embed_input_ids(input_ids)"),
        ("a stage's memory of another type", "dtype=dtype, device=device", "device=device"),
        ("a length that the scaling is relative to, forgotten", "max_position=config.max_position_embeddings, ", ""),
        ("forget to claim pipeline stages", "nn.Module, SupportsLoRA, SupportsPP", "nn.Module, SupportsLoRA"),
        ("an adapter's name for another embedding", '"embed_tokens": "input_embeddings"', '"embed_tokens": "output_embeddings"'),
        ("a mean over the batch", "return self.mlp(hidden_states), residual",
         "return self.mlp(hidden_states) + 0.01 * hidden_states.mean(0), residual"),
    ),
    *_of(
        "llama_plugin.contract:TestMistral",
        "llama_plugin.llama",
        ("a window one token too wide", 'per_layer_sliding_window=getattr(config, "sliding_window", None)',
         'per_layer_sliding_window=config.sliding_window and config.sliding_window + 1'),
    ),
    *_of(
        "mixtral_plugin.contract:TestMixtral",
        "mixtral_plugin.mixtral",
        ("weights that do not sum to one", "renormalize=True", "renormalize=False"),
        ("swap gate and up of the experts", '("w1", "w2", "w3")', '("w3", "w2", "w1")'),
        ("one expert too few", "            config.num_experts_per_tok,", "            max(1, config.num_experts_per_tok - 1),"),
        ("a router that sees something else", "router_logits, _ = self.gate(hidden_states)",
         "router_logits, _ = self.gate(hidden_states.tanh())"),
        ("always SiLU", "activation=config.hidden_act", 'activation="silu"'),
    ),
    *_of(
        "bloom_plugin.contract:TestBloom",
        "bloom_plugin.bloom",
        ("drop the embedding's norm", "hidden_states = self.word_embeddings_layernorm(embedded)", "hidden_states = embedded"),
        ("rows of q, k and v not by head", "interleaved=True", "interleaved=False"),
        ("no ALiBi", "alibi_slopes=get_alibi_slopes(config.n_head)", "alibi_slopes=None"),
        ("slopes of the next power of two", "get_alibi_slopes(config.n_head)", "get_alibi_slopes(8)[: config.n_head]"),
        ("the exact GELU", 'get_act_fn("gelu_tanh")', 'get_act_fn("gelu")'),
        ("the residual always before the norm", "self.residual_is_normed = config.apply_residual_connection_post_layernorm",
         "self.residual_is_normed = False"),
        ("the published names of the last norm", '("word_embeddings", "h.", "ln_f.")', '("word_embeddings", "h.")'),
        ("drop the bias of the MLP", "RowParallelLinear(4 * config.hidden_size, config.hidden_size)",
         "RowParallelLinear(4 * config.hidden_size, config.hidden_size, bias=False)"),
    ),
    *_of(
        "qwen_plugin.contract:TestQWen",
        "qwen_plugin.qwen",
        ("swap w1 and w2", '["w2", "w1"]', '["w1", "w2"]'),
        ("width not halved", "config.intermediate_size // 2", "config.intermediate_size"),
        ("drop the bias of c_attn", "head_dim, heads, bias=True", "head_dim, heads, bias=False"),
        ("rotate all of each head", "partial_rotary_factor=config.rotary_pct", "partial_rotary_factor=1.0"),
        ("always dynamic NTK", "if config.use_dynamic_ntk:", "if True:"),
        ("always log-n attention", "config.seq_length if config.use_logn_attn else None", "config.seq_length"),
        ("a base as published", '"rope_theta": config.rotary_emb_base', '"rope_theta": 10_000.0'),
        ("an epsilon as published", "self.ln_2 = RMSNorm(config.hidden_size, eps=config.layer_norm_epsilon)",
         "self.ln_2 = RMSNorm(config.hidden_size)"),
        ("a projection the wrong way round", "(heads * head_dim, config.hidden_size,", "(config.hidden_size, heads * head_dim,"),
        ("always scale", "scale=head_dim**-0.5 if config.scale_attn_weights else 1.0", "scale=head_dim**-0.5"),
    ),
    *_of(
        "qwen_plugin.contract:TestQwen2",
        "qwen_plugin.qwen2",
        ("drop the bias of q, k and v", "config.num_key_value_heads, bias=True", "config.num_key_value_heads, bias=False"),
        ("ignore dual-chunk attention", 'dual_chunk_attention_config=getattr(config, "dual_chunk_attention_config", None)',
         "dual_chunk_attention_config=None"),
        ("always SiLU", "get_act_and_mul_fn(config.hidden_act)", 'get_act_and_mul_fn("silu")'),
        ("a window in every layer", 'if layer_type == "sliding_attention" else None', "if True else None"),
    ),
    *_of(
        "qwen_plugin.contract:TestQwen3",
        "qwen_plugin.qwen3",
        ("keys with the queries' norm", "k_norm=self.k_norm", "k_norm=self.q_norm"),
        ("norm after the rotation", "output, _ = self.o_proj(self.attn(q, k, v, positions=positions))",
         "q, k = self.rotary_emb(positions, q, k); "
         "output, _ = self.o_proj(self.attn(q, k, v, positions=torch.zeros_like(positions)))"),
    ),
    *_of(
        "qwen_plugin.contract:TestQwen2Moe",
        "qwen_plugin.qwen2_moe",
        ("a shared expert without its gate", "shared_gate.sigmoid() * self.shared_expert", "self.shared_expert"),
        ("a gate without its sigmoid", "shared_gate.sigmoid()", "shared_gate"),
        ("forget the shared expert", "self.experts(hidden_states, router_logits) + shared",
         "self.experts(hidden_states, router_logits)"),
        ("always weights that sum to one", "renormalize=config.norm_topk_prob", "renormalize=True"),
        ("experts one layer early", "(layer + 1) % config.decoder_sparse_step", "(layer + 2) % config.decoder_sparse_step"),
        ("experts two layers early", "(layer + 1) % config.decoder_sparse_step", "(layer - 1) % config.decoder_sparse_step"),
    ),
    *_of(
        "qwen_plugin.contract:TestQwen3Moe",
        "qwen_plugin.qwen3_moe",
        ("experts in every layer", "layer not in config.mlp_only_layers", "True"),
        ("SiLU in layers without experts", "get_act_and_mul_fn(config.hidden_act)", 'get_act_and_mul_fn("silu")'),
        ("heads as wide as published", "config.hidden_size // config.num_attention_heads", "128"),
        ("never weights that sum to one", "renormalize=config.norm_topk_prob", "renormalize=False"),
    ),
    *_of(
        "llama_plugin.contract:TestLlama",
        "llama_plugin.llama",
        ("query heads of all ranks", "self.qkv_proj.num_heads,", "config.num_attention_heads,"),
        ("key-value heads of all ranks", "num_kv_heads=self.qkv_proj.num_kv_heads", "num_kv_heads=config.num_key_value_heads"),
        ("key-value heads divided where they are copied", "num_kv_heads=self.qkv_proj.num_kv_heads",
         "num_kv_heads=self.qkv_proj.num_heads * config.num_key_value_heads // config.num_attention_heads"),
        ("nobody sums what the ranks give", "config.hidden_size, bias=bias)\n        self.act_fn",
         "config.hidden_size, bias=bias, reduce_results=False)\n        self.act_fn"),
        ("a projection whole on every rank", "RowParallelLinear(config.intermediate_size",
         "__import__('bestiary.nn').nn.ReplicatedLinear(config.intermediate_size"),
        ("outputs split instead of inputs", "RowParallelLinear(config.num_attention_heads",
         "__import__('bestiary.nn').nn.ColumnParallelLinear(config.num_attention_heads"),
        first="tensor_parallel",
    ),
    *_of(
        "mixtral_plugin.contract:TestMixtral",
        "mixtral_plugin.mixtral",
        ("nobody sums what the experts give", "renormalize=True,", "renormalize=True,\n            reduce_results=False,"),
        first="tensor_parallel",
    ),
    *_of(
        "qwen_plugin.contract:TestQwen2Moe",
        "qwen_plugin.qwen2_moe",
        ("the shared expert once for each rank", "self.experts(hidden_states, router_logits) + shared",
         "self.experts(hidden_states, router_logits) + self.experts.group.all_reduce(shared)"),
        first="tensor_parallel",
    ),
]  # fmt: skip
