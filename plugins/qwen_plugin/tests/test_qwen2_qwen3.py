"""Qwen2 and Qwen3 against transformers, on small random checkpoints that transformers wrote."""

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
CONFIGS = {
    "qwen2": lambda **changes: transformers.Qwen2Config(**SMALL | changes),
    "qwen3": lambda **changes: transformers.Qwen3Config(**SMALL | {"head_dim": 16} | changes),
}


def rope(kind, **more):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10_000.0, **more}}


VARIANTS = {
    "gqa": {},
    "mha": {"num_key_value_heads": 4},
    "tied": {"tie_word_embeddings": True},
    "wide heads": {"head_dim": 24},
    "large theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    "linear": rope("linear", factor=3.0),
    "dynamic": rope("dynamic", factor=2.0),
    "yarn": rope("yarn", factor=4.0, original_max_position_embeddings=32),
    "a window that is not used": {"use_sliding_window": False, "sliding_window": 4},
    "a window on the last layers": {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    "a window on every layer": {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 0},
    "windows by layer": {
        "use_sliding_window": True,
        "sliding_window": 5,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
}
CASES = [(family, variant) for family in CONFIGS for variant in VARIANTS]
QWEN3 = {
    "attention bias": {"attention_bias": True},
    "narrow heads": {"head_dim": 8},
    "heads wider than the model": {"head_dim": 32, "num_key_value_heads": 1},
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


def check(model, llm, tokens=16):
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
    options = {"dtype": "float32"} | options
    return LLM(str(folder), skip_tokenizer_init=True, progress=False, **options)


@pytest.mark.parametrize(("family", "variant"), CASES)
def test_both_equal_transformers(family, variant, tmp_path):
    check(save(CONFIGS[family](**VARIANTS[variant]), tmp_path), load(tmp_path))


@pytest.mark.parametrize("variant", QWEN3)
def test_qwen3_equals_transformers(variant, tmp_path):
    check(save(CONFIGS["qwen3"](**QWEN3[variant]), tmp_path), load(tmp_path))


@pytest.mark.parametrize("family", CONFIGS)
def test_sharded_checkpoints_and_small_chunks(family, tmp_path):
    model = save(CONFIGS[family](use_sliding_window=True, sliding_window=6, max_window_layers=2), tmp_path,
                 max_shard_size="40KB")  # fmt: skip
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    check(model, load(tmp_path, max_num_batched_tokens=7, block_size=4, max_num_seqs=3))


@pytest.mark.parametrize("family", CONFIGS)
def test_bfloat16_stays_near_float32(family, tmp_path):
    model = save(CONFIGS[family](), tmp_path)
    llm = load(tmp_path, dtype="bfloat16")
    for ids in prompts():
        with torch.inference_mode():
            want = model(torch.tensor([ids])).logits[0]
        got = prompt_logits(llm, ids).float()
        assert float((got - want).abs().max()) < 0.05 * float(want.abs().max()) + 0.5


@pytest.mark.parametrize("family", CONFIGS)
def test_windows_are_those_that_transformers_gives_each_layer(family, tmp_path):
    model = save(CONFIGS[family](use_sliding_window=True, sliding_window=6, max_window_layers=1), tmp_path)
    runner = load(tmp_path).engine.executor.runner
    found = [layer.self_attn.attn.sliding_window for layer in runner.model.model.layers]
    assert found == [layer.self_attn.sliding_window for layer in model.model.layers] == [None, 6, 6]
