"""Whole models on a GPU: beside the CPU's float32, with and without graphs, and bit for bit where that is promised."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from bestiary import LLM, LoRARequest, SamplingParams
from bestiary.engine.loaded_model import kernels_in_words
from bestiary.testing.adapters import random_adapter, write_adapter

pytestmark = pytest.mark.gpu

COMMON = {"vocab_size": 160, "max_position_embeddings": 2048, "initializer_range": 0.2, "eos_token_id": 2}
SIZES = {
    **COMMON, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 64,
}  # fmt: skip
CONFIGS = {
    "mistral with a window": lambda: transformers.MistralConfig(**SIZES, sliding_window=70),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(
        **SIZES, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=64, norm_topk_prob=True
    ),
    "bloom": lambda: transformers.BloomConfig(**COMMON, hidden_size=128, n_layer=2, n_head=4),
}
PROMPTS = [[5, 9, 3, 77, 40, 8], [61, 12, 12, 90, 33, 7, 50], [17], list(range(20, 140)) * 6]
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=3)
Answer = list[tuple[int, float]]


@functools.cache
def checkpoint(name: str) -> str:
    folder = tempfile.mkdtemp()
    torch.manual_seed(1)
    transformers.AutoModelForCausalLM.from_config(CONFIGS[name]()).save_pretrained(folder)
    return folder


@functools.cache
def adapters(name: str) -> tuple[LoRARequest, ...]:
    """Two on every projection, experts' included."""
    model, folder = transformers.AutoModelForCausalLM.from_pretrained(checkpoint(name)), Path(tempfile.mkdtemp())
    weights = {name.removesuffix(".weight"): each for name, each in model.named_parameters() if "_proj" in name}
    made = {each: write_adapter(folder / each, random_adapter(weights, seed=ord(each))) for each in "ab"}
    return tuple(LoRARequest(each, lora_path=path) for each, path in made.items())


def answers(
    name: str,
    prompts: list[list[int]] = PROMPTS,
    lora_request: list[LoRARequest | None] | None = None,
    **options: Any,
) -> tuple[list[Answer], LLM]:
    """Each token of each answer with its log-probability, and the engine that gave them."""
    plain = {"skip_tokenizer_init": True, "progress": False, "num_gpu_blocks_override": 512, "device": "cuda"}
    llm = LLM(checkpoint(name), **{**plain, **options})
    asked = [{"prompt_token_ids": ids} for ids in prompts]
    outputs = llm.generate(asked, GREEDY, use_tqdm=False, lora_request=lora_request)
    found = []
    for output in outputs:
        one = output.outputs[0]
        found.append([(token, step[token].logprob) for token, step in zip(one.token_ids, one.logprobs, strict=True)])
    return found, llm


def tokens(found: list[Answer]) -> list[list[int]]:
    return [[token for token, _ in answer] for answer in found]


@pytest.mark.parametrize("name", CONFIGS)
def test_tokens_are_the_cpus(name: str) -> None:
    found, llm = answers(name, dtype="float32")
    assert llm.engine.ops["rms_norm"] == "triton"
    wanted, _ = answers(name, dtype="float32", device="cpu", kernels="torch")
    assert tokens(found) == tokens(wanted)


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 0},
        {"temperature": 0.8, "seed": 3, "top_k": 20},
        {"temperature": 0.8, "seed": 3, "repetition_penalty": 1.3, "logit_bias": {4: 2.0}, "logprobs": 2},
    ],
    ids=str,
)
def test_steps_wait_for_nothing(params: dict[str, Any]) -> None:
    """But for an event, where the tokens of the step before are wanted."""
    _, llm = answers("mistral with a window", PROMPTS[:3], dtype="bfloat16")
    sampling = SamplingParams(max_tokens=20, ignore_eos=True, **params)
    for number, prompt in enumerate(PROMPTS[:3]):
        llm.engine.add_request(str(number), prompt, sampling)
    for _ in range(4):  # prompts, and the step that is captured
        llm.engine.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        made = [update for _ in range(6) for update in llm.engine.step()]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len([each for each in made if each.token_id is not None]) == 18


@pytest.mark.parametrize("name", CONFIGS)
def test_graphs_change_nothing(name: str) -> None:
    found, llm = answers(name, dtype="bfloat16")
    assert llm.engine.executor.runner.graphs.steps
    assert not llm.engine.executor.runner.graphs.refused
    assert kernels_in_words(llm.engine.executor.runner.stage.ops, None) == "torch, triton"
    eager, llm = answers(name, dtype="bfloat16", enforce_eager=True)
    assert llm.engine.executor.runner.graphs is None
    assert tokens(found) == tokens(eager)


@pytest.mark.parametrize("quantization", ["int8", "int4", "fp8"])
def test_quantized_experts_are_captured(quantization: str) -> None:
    found, llm = answers("qwen3_moe", dtype="bfloat16", quantization=quantization)
    assert llm.engine.ops["grouped_experts"] == "triton"
    assert llm.engine.executor.runner.graphs.steps
    assert not llm.engine.executor.runner.graphs.refused
    eager, _ = answers("qwen3_moe", dtype="bfloat16", quantization=quantization, enforce_eager=True)
    assert tokens(found) == tokens(eager)


@pytest.mark.parametrize("name", CONFIGS)
def test_steps_captured_at_the_start_change_nothing(name: str) -> None:
    found, llm = answers(name, dtype="bfloat16", capture_sizes="at_start", max_num_seqs=12)
    assert {rows for rows, _ in llm.engine.executor.runner.graphs.steps} == {16, 8, 4, 2, 1}
    assert tokens(found) == tokens(answers(name, dtype="bfloat16")[0])


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", ["mistral with a window", "qwen3_moe", "bloom"])
def test_deterministic_answers_are_the_same_bits(name: str, dtype: str) -> None:
    """Alone, together, with prompts in parts, from the prefix cache, and after preemption."""
    options = {"dtype": dtype, "deterministic": True}
    together, llm = answers(name, **options)
    again = llm.generate([{"prompt_token_ids": ids} for ids in PROMPTS], GREEDY, use_tqdm=False)
    cached = [
        [(token, step[token].logprob) for token, step in zip(one.token_ids, one.logprobs, strict=True)]
        for one in (each.outputs[0] for each in again)
    ]
    assert cached == together
    alone = [answers(name, [prompt], **options)[0][0] for prompt in PROMPTS]
    assert alone == together
    assert answers(name, max_num_batched_tokens=64, **options)[0] == together
    assert answers(name, num_gpu_blocks_override=52, **options)[0] == together


@pytest.mark.parametrize("name", ["mistral with a window", "qwen3_moe"])
def test_adapters_in_prompts_and_alone(name: str) -> None:
    """In tiles and row by row; and where a row's bits are its own, the same ones alone, together and in parts."""
    first, second = adapters(name)
    options = {"enable_lora": True, "max_lora_rank": 8, "lora_request": [first, None, second, second]}
    found, llm = answers(name, dtype="float32", **options)
    assert llm.engine.ops["add_lora"] == "triton"
    wanted, _ = answers(name, dtype="float32", device="cpu", kernels="torch", **options)
    assert tokens(found) == tokens(wanted) != tokens(answers(name, dtype="float32")[0])
    exact = {**options, "dtype": "bfloat16", "deterministic": True}
    together, llm = answers(name, **exact)
    assert llm.engine.ops["add_lora"] == "triton_exact"
    assert answers(name, max_num_batched_tokens=64, **exact)[0] == together
    assert answers(name, PROMPTS[3:], **{**exact, "lora_request": [second]})[0] == together[3:]
