"""GGUF files of small BLOOMs beyond what the contract checks: other kinds of blocks, another reader, refusals."""

import pytest
import torch
import transformers

from bestiary import LLM
from bestiary.api.errors import ConfigError
from bestiary.testing.gguf_file import rounded, write_gguf
from bestiary.testing.logits import prompt_logits
from bloom_plugin.contract import TestBloom as Contract

IDS = torch.randint(0, 96, (70,), generator=torch.Generator().manual_seed(1)).tolist()


@pytest.fixture
def model():
    torch.manual_seed(3)
    config = transformers.BloomConfig(
        hidden_size=64, n_head=4, n_layer=2, vocab_size=96, seq_length=256, initializer_range=0.2
    )
    return transformers.BloomForCausalLM(config).eval()


def write(model, path, kind="F32", **more):
    contract, config = Contract(), model.config
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}

    def metadata(writer):
        contract.gguf_metadata(writer, config)
        for key, value in more.items():
            writer.add_float32(f"bloom.{key.replace('__', '.')}", value)

    write_gguf(
        path, "bloom", tensors, config, kind=kind, metadata=metadata,
        rows=lambda name, array: contract.gguf_rows(name, array, config),
    )  # fmt: skip
    return tensors


def check(model, path):
    llm = LLM(str(path), dtype="float32", skip_tokenizer_init=True, progress=False)
    with torch.inference_mode():
        want = model(torch.tensor([IDS])).logits[0]
    torch.testing.assert_close(prompt_logits(llm, IDS), want, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["Q5_1", "BF16"])
def test_blocks_are_decoded_and_fused_rows_put_back(kind, model, tmp_path):
    tensors = write(model, tmp_path / "model.gguf", kind)
    model.load_state_dict(rounded(tensors, kind), strict=False)
    check(model, tmp_path / "model.gguf")


def test_transformers_reads_the_same_from_the_file(model, tmp_path):
    """The file is one that another reader understands."""
    write(model, tmp_path / "model.gguf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    check(theirs.eval(), tmp_path / "model.gguf")


def test_a_file_that_asks_for_other_mathematics_is_refused(model, tmp_path):
    write(model, tmp_path / "model.gguf", attention__clamp_kqv=0.5)
    with pytest.raises(ConfigError) as caught:
        check(None, tmp_path / "model.gguf")
    assert caught.value.error_code == "UNSUPPORTED_LAYER"
    assert caught.value.field == "bloom.attention.clamp_kqv"
