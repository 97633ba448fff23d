"""Tiny models by Triton kernels, emulated or interpreted (`emulated.py`), for test_models.py.

Prints for each model the greedy tokens by Triton's versions of ops and attention and by torch's, as JSON.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import emulated
import torch
import transformers

from bestiary import LLM, LoRARequest, SamplingParams
from bestiary.testing.adapters import random_adapter, write_adapter

COMMON = {"vocab_size": 96, "max_position_embeddings": 256, "initializer_range": 0.2, "eos_token_id": 2}
SIZES = {
    **COMMON, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16,
}  # fmt: skip
CONFIGS = {
    "mistral with a window": transformers.MistralConfig(**SIZES, sliding_window=7),
    "qwen3_moe": transformers.Qwen3MoeConfig(
        **SIZES, num_experts=5, num_experts_per_tok=2, moe_intermediate_size=24, norm_topk_prob=True
    ),
    "bloom": transformers.BloomConfig(**COMMON, hidden_size=32, n_layer=2, n_head=4),
}
PROMPTS = [[5, 9, 3, 77, 40, 8], [61, 12, 12, 90, 33, 7, 50, 21, 4], [17], list(range(20, 40))]
GREEDY = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
TORCH = {
    "rms_norm", "fused_add_rms_norm", "layer_norm", "silu_and_mul", "gelu", "rotary_embedding", "qk_norm_rope",
    "rotary_angles", "qk_norm_rope_cache", "write_kv_cache", "topk_routing", "fused_experts", "grouped_experts",
    "linear_int4", "add_lora", "add_lora_embedding",
}  # fmt: skip


def tokens(folder: str, **options: object) -> tuple[list[list[int]], dict[str, str], str]:
    """The answers, and which version of each op and which attention gave them."""
    llm = LLM(
        folder, kernels="torch", skip_tokenizer_init=True, progress=False, device="cpu", dtype="float32",
        num_gpu_blocks_override=64, **options,
    )  # fmt: skip
    adapters = [LoRARequest(name, lora_path=f"{folder}/{name}") for name in "ab"] if "enable_lora" in options else []
    asked = [None, *adapters, *adapters] if adapters else None
    prompts = [*PROMPTS, [3 + at % 90 for at in range(70)]] if adapters else PROMPTS
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], GREEDY, use_tqdm=False, lora_request=asked)
    layers = [each for each in llm.engine.executor.runner.model.modules() if hasattr(each, "backend")]
    return [each.outputs[0].token_ids for each in outputs], dict(llm.engine.ops), layers[0].backend.name


RUNS: dict[str, dict[str, object]] = {
    **{name: {} for name in CONFIGS}, "qwen3_moe in int4": {"quantization": "int4"},
    "qwen3_moe with adapters": {"enable_lora": True, "max_lora_rank": 8},
}  # fmt: skip
"""Models, some quantized while they are loaded; and prompts of several adapters, in tiles and row by row."""


def main() -> None:
    emulated.start_program()
    found = {}
    for name, options in RUNS.items():
        config = CONFIGS[name.removesuffix(" in int4").removesuffix(" with adapters")]
        folder = tempfile.mkdtemp()
        torch.manual_seed(1)
        model = transformers.AutoModelForCausalLM.from_config(config)
        model.save_pretrained(folder)
        weights = {name.removesuffix(".weight"): each for name, each in model.named_parameters() if "_proj" in name}
        for seed, adapter in enumerate("ab"):
            write_adapter(Path(folder) / adapter, random_adapter(weights, seed=seed))
        by_torch = dict.fromkeys(TORCH, "reference")
        found[name] = {
            "triton": tokens(folder, **options),
            "exact": tokens(folder, deterministic=True, **options),
            "torch": tokens(folder, attention_backend="torch", ops=by_torch, **options),
        }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
