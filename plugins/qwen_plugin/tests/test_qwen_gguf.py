"""GGUF files of small Qwens, written with the `gguf` package as llama.cpp's converter lays them out, against the
transformers model they were written from."""

import gguf
import numpy as np
import pytest
import torch
import transformers

from bestiary import LLM
from bestiary.testing.logits import prompt_logits

SMALL = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 96, "max_position_embeddings": 256, "initializer_range": 0.2,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 64}
FAMILIES = {
    "qwen2": (gguf.MODEL_ARCH.QWEN2, lambda **changes: transformers.Qwen2Config(**SMALL | changes)),
    "qwen3": (gguf.MODEL_ARCH.QWEN3, lambda **changes: transformers.Qwen3Config(**SMALL | {"head_dim": 24} | changes)),
}
VARIANTS = {"plain": {}, "tied": {"tie_word_embeddings": True}, "yarn": {"rope_parameters": YARN}}


def metadata(writer, config):
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    if head_dim := getattr(config, "head_dim", None):
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])


def write(model, path, family, kind=gguf.GGMLQuantizationType.F32):
    """The model as a GGUF file, its matrices of type `kind`; returns the matrices that a reader must see."""
    config = model.config
    names = gguf.get_tensor_name_map(FAMILIES[family][0], config.num_hidden_layers)
    writer, stored = gguf.GGUFWriter(path, family), {}
    metadata(writer, config)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        rows, place = np.ascontiguousarray(tensor.numpy()), names.get_name(name, (".weight", ".bias"))
        if rows.ndim == 2 and kind is not gguf.GGMLQuantizationType.F32:
            blocks = gguf.quantize(rows, kind)
            stored[name] = torch.from_numpy(gguf.dequantize(blocks, kind))
            writer.add_tensor(place, blocks, raw_dtype=kind)
        else:
            writer.add_tensor(place, rows)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stored


def random_model(family, **changes):
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(FAMILIES[family][1](**changes), dtype=torch.float32).eval()
    with torch.no_grad():
        for name, param in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                param.add_(torch.randn_like(param) * 0.2)
    return model


def check(model, path):
    llm = LLM(str(path), dtype="float32", skip_tokenizer_init=True, progress=False)
    ids = torch.randint(0, 96, (70,), generator=torch.Generator().manual_seed(1)).tolist()
    with torch.inference_mode():
        want = model(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(prompt_logits(llm, ids), want, atol=1e-4, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_gguf_file_equals_the_model_it_was_written_from(family, variant, tmp_path):
    model = random_model(family, **VARIANTS[variant])
    write(model, tmp_path / "model.gguf", family)
    check(model, tmp_path / "model.gguf")


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_are_decoded(family, tmp_path):
    model = random_model(family)
    stored = write(model, tmp_path / "model.gguf", family, gguf.GGMLQuantizationType.Q8_0)
    model.load_state_dict(stored, strict=False)
    check(model, tmp_path / "model.gguf")
