"""Llama and its like against transformers, on small random checkpoints that transformers wrote."""

import pytest
import torch
import transformers

from bestiary import LLM, SamplingParams
from bestiary.testing.logits import prompt_logits

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 211,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def rope(kind, **more):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10_000.0, **more}}


LONG = {"short_factor": [1.0 + 0.1 * i for i in range(8)], "long_factor": [2.0 + 0.3 * i for i in range(8)]}

VARIANTS = {
    "gqa": {},
    "mha": {"num_key_value_heads": 4},
    "mqa": {"num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True},
    "attention bias": {"attention_bias": True},
    "mlp bias": {"mlp_bias": True},
    "wide heads": {"head_dim": 24},
    "narrow heads": {"head_dim": 8},
    "gelu": {"hidden_act": "gelu"},
    "large theta": rope("default") | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    "linear": rope("linear", factor=3.0),
    "dynamic": rope("dynamic", factor=2.0),
    "llama3": rope(
        "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
    ),
    "yarn": rope("yarn", factor=4.0, original_max_position_embeddings=32),
    "longrope": rope("longrope", factor=4.0, original_max_position_embeddings=128, **LONG),
}


def save(config, folder, **options):
    torch.manual_seed(7)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():  # transformers starts biases at zero and norms at one, which would hide a dropped one
        for name, param in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                param.add_(torch.randn_like(param) * 0.2)
    model.save_pretrained(folder, **options)
    model.generation_config.eos_token_id = None  # the engine is told to go on too
    return model


def prompts(vocab=211):
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(3, vocab, (length,), generator=generator).tolist() for length in (1, 5, 17, 40)]


def check(model, llm, tokens=24):
    """Logits within 1e-4 and greedy tokens equal, the engine running all prompts in one batch."""
    for ids in prompts():
        with torch.inference_mode():
            want = model(torch.tensor([ids])).logits[0]
        torch.testing.assert_close(prompt_logits(llm, ids), want, atol=1e-4, rtol=0)
    greedy = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts()], greedy, use_tqdm=False)
    for ids, output in zip(prompts(), outputs, strict=True):
        with torch.inference_mode():
            want = model.generate(
                torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), max_new_tokens=tokens, do_sample=False
            )  # fmt: skip
        assert output.outputs[0].token_ids == want[0, len(ids) :].tolist()


def load(folder, **options):
    return LLM(str(folder), dtype="float32", skip_tokenizer_init=True, progress=False, **options)


@pytest.mark.parametrize("variant", VARIANTS)
def test_llama_equals_transformers(variant, tmp_path):
    config = transformers.LlamaConfig(**{**SMALL, **VARIANTS[variant]})
    check(save(config, tmp_path), load(tmp_path))


@pytest.mark.parametrize("window", [4, 16, None])
def test_mistral_with_and_without_a_sliding_window(window, tmp_path):
    config = transformers.MistralConfig(**SMALL, sliding_window=window)
    check(save(config, tmp_path), load(tmp_path))


PHI3 = {
    "plain": {},
    "partial rotation": {"partial_rotary_factor": 0.5},
    "window": {"sliding_window": 8},
    "longrope": rope("longrope", factor=4.0, original_max_position_embeddings=128, **LONG),
}


@pytest.mark.parametrize("variant", PHI3)
def test_phi3_whose_checkpoints_hold_fused_projections(variant, tmp_path):
    config = transformers.Phi3Config(**SMALL | {"pad_token_id": 0, "sliding_window": None} | PHI3[variant])
    check(save(config, tmp_path), load(tmp_path))


def test_the_first_spelling_of_the_name(tmp_path):
    model = save(transformers.LlamaConfig(**SMALL), tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace("LlamaForCausalLM", "LLaMAForCausalLM"))
    check(model, load(tmp_path))


def test_sharded_checkpoints_and_small_chunks(tmp_path):
    model = save(transformers.LlamaConfig(**SMALL), tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    check(model, load(tmp_path, max_num_batched_tokens=7, block_size=4, max_num_seqs=3))


def test_bfloat16_stays_near_float32(tmp_path):
    model = save(transformers.LlamaConfig(**SMALL), tmp_path)
    llm = LLM(str(tmp_path), dtype="bfloat16", skip_tokenizer_init=True, progress=False)
    for ids in prompts():
        with torch.inference_mode():
            want = model(torch.tensor([ids])).logits[0]
        got = prompt_logits(llm, ids).float()
        assert float((got - want).abs().max()) < 0.05 * float(want.abs().max()) + 0.5
