"""BLOOM, by its contract; and the names of the published checkpoints."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from bestiary import LLM
from bestiary.testing.logits import prompt_logits
from bloom_plugin.contract import TestBloom

__all__ = ["TestBloom"]

IDS = [7, 150, 3, 99, 42, 18, 5, 200, 77]


@pytest.fixture
def model(tmp_path):
    torch.manual_seed(7)
    config = transformers.BloomConfig(
        hidden_size=96, n_head=6, n_layer=3, vocab_size=211, seq_length=128, initializer_range=0.2
    )
    made = transformers.BloomForCausalLM(config).eval()
    made.save_pretrained(tmp_path)
    return made


def check(model, folder, **options):
    llm = LLM(str(folder), dtype="float32", skip_tokenizer_init=True, progress=False, **options)
    with torch.inference_mode():
        want = model(torch.tensor([IDS])).logits[0]
    torch.testing.assert_close(prompt_logits(llm, IDS), want, atol=1e-4, rtol=0)
    torch.testing.assert_close(prompt_logits(llm, IDS, chunk=3), want, atol=1e-4, rtol=0)
    return llm


@pytest.mark.parametrize("backend", ["reference", "deterministic"])
def test_other_attention_backends(backend, model, tmp_path):
    check(model, tmp_path, attention_backend=backend)


def test_the_published_checkpoints_names(model, tmp_path):
    """Those of bigscience/bloom: tensors of the bare model, and the configuration's first field names."""
    stored = load_file(tmp_path / "model.safetensors")
    save_file({name.removeprefix("transformer."): w for name, w in stored.items()}, tmp_path / "model.safetensors")
    fields = json.loads((tmp_path / "config.json").read_text())
    for new, old in {"hidden_size": "n_embed", "n_head": "num_attention_heads"}.items():
        fields[old] = fields.pop(new)
    del fields["tie_word_embeddings"]
    fields |= {"n_inner": None, "offset_alibi": 100, "attention_softmax_in_fp32": True, "skip_bias_add": True}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    llm = check(model, tmp_path)
    assert llm.engine.vllm_config.model_config.max_model_len == 128
