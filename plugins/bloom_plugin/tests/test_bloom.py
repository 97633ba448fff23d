"""BLOOM against transformers, on small random checkpoints that transformers wrote."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from bestiary import LLM, SamplingParams
from bestiary.testing.logits import prompt_logits

SMALL = {
    "hidden_size": 64,
    "n_head": 4,
    "n_layer": 3,
    "vocab_size": 211,
    "seq_length": 128,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

VARIANTS = {
    "plain": {},
    "one head": {"n_head": 1},
    "six heads": {"hidden_size": 96, "n_head": 6},
    "twelve heads": {"hidden_size": 96, "n_head": 12},
    "residual after the norm": {"apply_residual_connection_post_layernorm": True},
    "untied": {"tie_word_embeddings": False},
    "epsilon": {"layer_norm_epsilon": 0.1},
}


def save(config, folder, **options):
    torch.manual_seed(7)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():  # transformers starts biases at zero and norms at one, which would hide a dropped one
        for name, param in model.named_parameters():
            if name.endswith("bias") or "norm" in name or "ln_f" in name:
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
        torch.testing.assert_close(prompt_logits(llm, ids, chunk=3), want, atol=1e-4, rtol=0)
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
def test_bloom_equals_transformers(variant, tmp_path):
    config = transformers.BloomConfig(**{**SMALL, **VARIANTS[variant]})
    check(save(config, tmp_path), load(tmp_path))


@pytest.mark.parametrize("backend", ["reference", "deterministic"])
def test_other_attention_backends(backend, tmp_path):
    config = transformers.BloomConfig(**SMALL | {"hidden_size": 96, "n_head": 6, "n_layer": 1})
    check(save(config, tmp_path), load(tmp_path, attention_backend=backend), tokens=8)


def test_the_published_checkpoints_names(tmp_path):
    """Those of bigscience/bloom: tensors of the bare model, and the configuration's first field names."""
    model = save(transformers.BloomConfig(**SMALL | {"hidden_size": 96}), tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    save_file({name.removeprefix("transformer."): w for name, w in stored.items()}, tmp_path / "model.safetensors")
    fields = json.loads((tmp_path / "config.json").read_text())
    for new, old in {"hidden_size": "n_embed", "n_head": "num_attention_heads"}.items():
        fields[old] = fields.pop(new)
    del fields["tie_word_embeddings"]
    fields |= {"n_inner": None, "offset_alibi": 100, "attention_softmax_in_fp32": True, "skip_bias_add": True}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    llm = load(tmp_path)
    check(model, llm)
    assert llm.engine.vllm_config.model_config.max_model_len == SMALL["seq_length"]


def test_sharded_checkpoints_and_small_chunks(tmp_path):
    model = save(transformers.BloomConfig(**SMALL), tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    check(model, load(tmp_path, max_num_batched_tokens=7, block_size=4, max_num_seqs=3))


def test_bfloat16_stays_near_float32(tmp_path):
    model = save(transformers.BloomConfig(**SMALL), tmp_path)
    llm = LLM(str(tmp_path), dtype="bfloat16", skip_tokenizer_init=True, progress=False)
    for ids in prompts():
        with torch.inference_mode():
            want = model(torch.tensor([ids])).logits[0]
        got = prompt_logits(llm, ids).float()
        assert float((got - want).abs().max()) < 0.05 * float(want.abs().max()) + 0.5
