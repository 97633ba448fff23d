"""Tiny models of every architecture, whose shapes native kernels take, and what an engine says of them."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import torch
import transformers

from bestiary import LLM, SamplingParams

COMMON = {"vocab_size": 160, "max_position_embeddings": 1024, "initializer_range": 0.2, "eos_token_id": 2}
SIZES = {
    **COMMON, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16,
}  # fmt: skip
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**SIZES, tie_word_embeddings=True),
    "mistral with a window": lambda: transformers.MistralConfig(**SIZES, sliding_window=7),
    "qwen2": lambda: transformers.Qwen2Config(**SIZES),
    "qwen3": lambda: transformers.Qwen3Config(**SIZES),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(
        **SIZES, num_experts=5, num_experts_per_tok=2, moe_intermediate_size=32, norm_topk_prob=True
    ),
    "mixtral": lambda: transformers.MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2),
    "bloom": lambda: transformers.BloomConfig(**COMMON, hidden_size=64, n_layer=2, n_head=4),
}
PROMPTS = [[5, 9, 3, 77, 40, 8], [61, 12, 12, 90, 33, 7, 50, 21, 4], [17], list(range(20, 140)) * 3]
GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, logprobs=5)


@functools.cache
def checkpoint(name: str, dtype: torch.dtype = torch.float32) -> str:
    """A model directory that transformers wrote."""
    folder = Path(tempfile.mkdtemp(prefix="native"))
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name](), dtype=dtype)
    model.save_pretrained(folder)
    return str(folder)


def llm(path: str, kernels: str = "auto", **options: object) -> LLM:
    plain = {"skip_tokenizer_init": True, "progress": False, "num_gpu_blocks_override": 128, "device": "cpu"}
    return LLM(path, kernels=kernels, **{**plain, **options})


def said(
    engine: LLM, prompts: list[list[int]] = PROMPTS, params: list[SamplingParams] | None = None, **more: object
) -> list[list[dict[int, float]]]:
    """For each prompt and each token of the answer: the likeliest tokens and their log-probabilities."""
    inputs = [{"prompt_token_ids": ids} for ids in prompts]
    outputs = engine.generate(inputs, GREEDY if params is None else params, use_tqdm=False, **more)
    steps = [one.outputs[0].logprobs for one in outputs]
    return [[{token: each.logprob for token, each in step.items()} for step in answer] for answer in steps]


def differences(got: list[list[dict[int, float]]], want: list[list[dict[int, float]]]) -> list[float]:
    """Of log-probabilities, up to where answers part; sorted."""
    found = [0.0]
    for mine, theirs in zip(got, want, strict=True):
        for one, other in zip(mine, theirs, strict=True):
            found += [abs(one[token] - other[token]) for token in one.keys() & other.keys()]
            if max(one, key=one.__getitem__) != max(other, key=other.__getitem__):
                break
    return sorted(found)


def furthest(got: list[list[dict[int, float]]], want: list[list[dict[int, float]]]) -> float:
    return differences(got, want)[-1]
