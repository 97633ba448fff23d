"""GGUF files of small Llamas beyond what the contract checks: other blocks, and what files say in unusual ways."""

import pytest
import torch

from bestiary import LLM
from bestiary.api.errors import ConfigError
from bestiary.testing.gguf_file import rounded, write_gguf
from bestiary.testing.logits import prompt_logits
from bestiary.testing.reference import randomize, reference_logits, transformers_reference
from llama_plugin.contract import TestLlama as Contract

IDS = torch.randint(0, 211, (70,), generator=torch.Generator().manual_seed(1)).tolist()


def model(**changes):
    made = transformers_reference({**Contract.config, **changes}, "LlamaForCausalLM").eval()
    randomize(made)
    return made


def logits(path):
    return prompt_logits(LLM(str(path), dtype="float32", skip_tokenizer_init=True, progress=False), IDS)


def write(made, path, change=lambda writer: None, **options):
    write_gguf(path, "llama", made.state_dict(), made.config, metadata=change, **options)


@pytest.mark.parametrize("kind", ["Q4_0", "Q5_1", "BF16"])
def test_blocks_are_decoded_and_rotary_rows_put_back(kind, tmp_path):
    made = model()
    write(made, tmp_path / "model.gguf", kind=kind)
    made.load_state_dict(rounded(made.state_dict(), kind))
    torch.testing.assert_close(logits(tmp_path / "model.gguf"), reference_logits(made, IDS), atol=1e-4, rtol=0)


def test_a_scaling_factor_without_a_type_is_linear(tmp_path):
    made = model(rope_parameters={"rope_type": "linear", "rope_theta": 10_000.0, "factor": 3.0})
    write(made, tmp_path / "model.gguf", lambda writer: writer.kv_data[0].pop("llama.rope.scaling.type"))
    torch.testing.assert_close(logits(tmp_path / "model.gguf"), reference_logits(made, IDS), atol=1e-4, rtol=0)


@pytest.mark.parametrize("key", ["logit_scale", "attention.clamp_kqv", "final_logit_softcapping", "residual_scale"])
def test_a_file_that_asks_for_other_mathematics_is_refused(key, tmp_path):
    write(model(), tmp_path / "model.gguf", lambda writer: writer.add_float32(f"llama.{key}", 0.5))
    with pytest.raises(ConfigError) as caught:
        logits(tmp_path / "model.gguf")
    assert caught.value.error_code == "UNSUPPORTED_LAYER"
    assert caught.value.field == f"llama.{key}"


def test_a_config_json_beside_the_file_wins(tmp_path):
    made = model()
    write(made, tmp_path / "model.gguf")
    made.config.rope_parameters = {"rope_type": "default", "rope_theta": 500.0}
    made.config.architectures = ["LlamaForCausalLM"]
    made.config.save_pretrained(tmp_path)
    made.model.rotary_emb = type(made.model.rotary_emb)(made.config)
    torch.testing.assert_close(logits(tmp_path / "model.gguf"), reference_logits(made, IDS), atol=1e-4, rtol=0)
