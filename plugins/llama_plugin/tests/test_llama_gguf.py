"""GGUF files of small Llamas, written with the `gguf` package as llama.cpp's converter lays them out, against the
transformers model they were written from."""

import gguf
import numpy as np
import pytest
import torch
import transformers

from bestiary import LLM
from bestiary.api.errors import ConfigError
from bestiary.testing.logits import prompt_logits

SMALL = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 96, "max_position_embeddings": 256, "initializer_range": 0.2,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 64}

VARIANTS = {
    "plain": {},
    "multi-query": {"num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True},
    "wide heads": {"head_dim": 24},
    "linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 3.0}},
    "yarn": {"rope_parameters": YARN},
    "llama3": {"rope_parameters": LLAMA3},
}


def interleaved(rows, heads):
    """Each head's rows as GGUF stores them: pairs (i, i + d/2) side by side."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def metadata(writer, config):
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_dimension_count(config.head_dim)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])


def write(model, path, kind=gguf.GGMLQuantizationType.F32, **more):
    """The model as a GGUF file, its matrices of type `kind`; returns the weights that a reader must see.

    more: further metadata, numbers below ``llama.``; None leaves out what `metadata` writes.
    """
    config, names = model.config, gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, model.config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    writer, stored = gguf.GGUFWriter(path, "llama"), {}
    metadata(writer, config)
    for key, value in more.items():
        name = f"llama.{key.replace('__', '.')}"
        if value is None:
            del writer.kv_data[0][name]
        else:
            writer.add_float32(name, value)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        rows = tensor.numpy()
        module = name.split(".")[-2]
        rows = interleaved(rows, heads[module]) if module in heads else rows
        rows = np.ascontiguousarray(rows)
        if rows.ndim == 2 and kind is not gguf.GGMLQuantizationType.F32:
            blocks = gguf.quantize(rows, kind)
            back = torch.from_numpy(gguf.dequantize(blocks, kind))
            if module in heads:
                back = back.view(heads[module], -1, 2, back.shape[1]).transpose(1, 2).reshape(back.shape)
            stored[name] = back
            writer.add_tensor(names.get_name(name, (".weight",)), blocks, raw_dtype=kind)
        else:
            writer.add_tensor(names.get_name(name, (".weight",)), rows)
    if config.rope_parameters["rope_type"] == "llama3":
        plain = 1 / config.rope_parameters["rope_theta"] ** (torch.arange(0, config.head_dim, 2) / config.head_dim)
        writer.add_tensor("rope_freqs.weight", (plain / model.model.rotary_emb.inv_freq).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stored


def random_model(**changes):
    torch.manual_seed(3)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL | changes)).eval()


def check(model, path):
    llm = LLM(str(path), dtype="float32", skip_tokenizer_init=True, progress=False)
    ids = torch.randint(0, 96, (70,), generator=torch.Generator().manual_seed(1)).tolist()
    with torch.inference_mode():
        want = model(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(prompt_logits(llm, ids), want, atol=1e-4, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_gguf_file_equals_the_model_it_was_written_from(variant, tmp_path):
    model = random_model(**VARIANTS[variant])
    write(model, tmp_path / "model.gguf")
    check(model, tmp_path / "model.gguf")


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q5_1", "BF16"])
def test_blocks_are_decoded_and_rotary_rows_put_back(kind, tmp_path):
    model = random_model()
    stored = write(model, tmp_path / "model.gguf", gguf.GGMLQuantizationType[kind])
    model.load_state_dict(stored, strict=False)
    check(model, tmp_path / "model.gguf")


def test_a_scaling_factor_without_a_type_is_linear(tmp_path):
    model = random_model(rope_parameters={"rope_type": "linear", "rope_theta": 10_000.0, "factor": 3.0})
    write(model, tmp_path / "model.gguf", rope__scaling__type=None)
    check(model, tmp_path / "model.gguf")


@pytest.mark.parametrize("key", ["logit_scale", "attention__clamp_kqv", "final_logit_softcapping", "residual_scale"])
def test_a_file_that_asks_for_other_mathematics_is_refused(key, tmp_path):
    write(random_model(), tmp_path / "model.gguf", **{key: 0.5})
    with pytest.raises(ConfigError) as caught:
        check(None, tmp_path / "model.gguf")
    assert caught.value.error_code == "UNSUPPORTED_LAYER"
    assert caught.value.field == f"llama.{key.replace('__', '.')}"


def test_a_config_json_beside_the_file_wins(tmp_path):
    model = random_model()
    write(model, tmp_path / "model.gguf")
    model.config.rope_parameters = {"rope_type": "default", "rope_theta": 500.0}
    model.config.architectures = ["LlamaForCausalLM"]
    model.config.save_pretrained(tmp_path)
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    check(model, tmp_path / "model.gguf")
