"""GGUF files of small BLOOMs, written with the `gguf` package as llama.cpp's converter lays them out, against the
transformers model they were written from."""

import gguf
import numpy as np
import pytest
import torch
import transformers

from bestiary import LLM
from bestiary.api.errors import ConfigError
from bestiary.testing.logits import prompt_logits

SMALL = {"hidden_size": 64, "n_head": 4, "n_layer": 2, "vocab_size": 96, "initializer_range": 0.2}

VARIANTS = {
    "plain": {},
    "six heads": {"hidden_size": 96, "n_head": 6},
    "epsilon": {"layer_norm_epsilon": 0.1},
    "untied": {"tie_word_embeddings": False},
}


def by_projection(rows, heads):
    """Rows that a checkpoint has head by head (query, key, value) as GGUF stores them: queries, keys, values."""
    return rows.reshape(heads, 3, -1, *rows.shape[1:]).swapaxes(0, 1).reshape(rows.shape)


def by_head(rows, heads):
    """The inverse of `by_projection`."""
    return rows.reshape(3, heads, -1, *rows.shape[1:]).swapaxes(0, 1).reshape(rows.shape)


def metadata(writer, config):
    writer.add_context_length(256)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.n_layer)
    writer.add_feed_forward_length(4 * config.hidden_size)
    writer.add_head_count(config.n_head)
    writer.add_head_count_kv(config.n_head)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    writer.add_vocab_size(config.vocab_size)


def write(model, path, kind=gguf.GGMLQuantizationType.F32, **more):
    """The model as a GGUF file, its matrices of type `kind`; returns the weights that a reader must see.

    more: further metadata, numbers below ``bloom.``.
    """
    config, names = model.config, gguf.get_tensor_name_map(gguf.MODEL_ARCH.BLOOM, model.config.n_layer)
    writer, stored = gguf.GGUFWriter(path, "bloom"), {}
    metadata(writer, config)
    for key, value in more.items():
        writer.add_float32(f"bloom.{key.replace('__', '.')}", value)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        rows, fused = tensor.numpy(), ".query_key_value." in name
        rows = np.ascontiguousarray(by_projection(rows, config.n_head) if fused else rows)
        place = names.get_name(name.removeprefix("transformer."), (".weight", ".bias"))
        if rows.ndim == 2 and kind is not gguf.GGMLQuantizationType.F32:
            blocks = gguf.quantize(rows, kind)
            back = gguf.dequantize(blocks, kind)
            stored[name] = torch.from_numpy(by_head(back, config.n_head) if fused else back)
            writer.add_tensor(place, blocks, raw_dtype=kind)
        else:
            writer.add_tensor(place, rows)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stored


def random_model(**changes):
    torch.manual_seed(3)
    model = transformers.BloomForCausalLM(transformers.BloomConfig(**SMALL | changes)).eval()
    with torch.no_grad():
        for name, param in model.named_parameters():
            if name.endswith("bias") or "norm" in name or "ln_f" in name:
                param.add_(torch.randn_like(param) * 0.2)
    return model


def check(model, path):
    llm = LLM(str(path), dtype="float32", skip_tokenizer_init=True, progress=False)
    ids = torch.randint(0, 96, (70,), generator=torch.Generator().manual_seed(1)).tolist()
    with torch.inference_mode():
        want = model(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(prompt_logits(llm, ids), want, atol=1e-4, rtol=0)
    return llm


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_gguf_file_equals_the_model_it_was_written_from(variant, tmp_path):
    model = random_model(**VARIANTS[variant])
    write(model, tmp_path / "model.gguf")
    llm = check(model, tmp_path / "model.gguf")
    assert llm.engine.vllm_config.model_config.max_model_len == 256


@pytest.mark.parametrize("kind", ["Q8_0", "Q5_1", "BF16"])
def test_blocks_are_decoded_and_fused_rows_put_back(kind, tmp_path):
    model = random_model()
    stored = write(model, tmp_path / "model.gguf", gguf.GGMLQuantizationType[kind])
    model.load_state_dict(stored, strict=False)
    check(model, tmp_path / "model.gguf")


def test_transformers_reads_the_same_from_the_file(tmp_path):
    """The file above is one that another reader understands."""
    write(random_model(), tmp_path / "model.gguf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    check(theirs.eval(), tmp_path / "model.gguf")


def test_a_file_that_asks_for_other_mathematics_is_refused(tmp_path):
    write(random_model(), tmp_path / "model.gguf", attention__clamp_kqv=0.5)
    with pytest.raises(ConfigError) as caught:
        check(None, tmp_path / "model.gguf")
    assert caught.value.error_code == "UNSUPPORTED_LAYER"
    assert caught.value.field == "bloom.attention.clamp_kqv"
