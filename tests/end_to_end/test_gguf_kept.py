"""A file of many block types, as llama.cpp's mixed quantizations are, kept in its blocks."""

import numpy as np
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType, GGUFWriter

from bestiary import LLM
from bestiary.api.errors import ConfigError, WeightsMismatch
from bestiary.api.ggml_types import GgmlType
from bestiary.engine.arguments import EngineArgs
from bestiary.serve.cli.examine import examine
from bestiary.testing.gguf_file import tensor_names, write_metadata
from bestiary.testing.logits import prompt_logits

IDS = list(range(3, 40))
KINDS = {
    "q_proj": "Q4_K", "k_proj": "Q4_K", "v_proj": "Q6_K", "o_proj": "Q5_K", "gate_proj": "Q3_K", "up_proj": "IQ4_XS",
    "down_proj": "Q6_K", "embed_tokens": "Q6_K", "lm_head": "Q8_0",
}  # fmt: skip
SCALES = {"Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "Q3_K": (108,), "IQ4_XS": (0,), "Q8_0": (0,)}


def random_blocks(kind, shape, bad=False):
    """Random quants; scales for which numbers are some hundredths, or one that is infinite."""
    type = GgmlType[kind]
    data = np.random.default_rng(len(shape) + shape[0]).integers(
        0, 256, (*shape[:-1], shape[-1] // type.block_size * type.type_size), np.uint8
    )
    each = data.reshape(-1, type.type_size)
    scale = np.inf if bad else 1e-3 if type.block_size == 32 else 2e-5  # larger blocks multiply it once more
    for at in SCALES[kind]:
        each[:, at : at + 2] = np.array([scale], np.float16).view(np.uint8)
    return data


def write(path, bad=None):
    config = transformers.LlamaConfig(
        hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=96, max_position_embeddings=128,
    )  # fmt: skip
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    names, writer = tensor_names("llama", 2), GGUFWriter(path, "llama")
    write_metadata(writer, config)
    for name, tensor in model.state_dict().items():
        kind = KINDS.get(name.split(".")[-2])
        if kind is None:
            writer.add_tensor(names(name), np.ones(tensor.shape, np.float32))
        else:
            data = random_blocks(kind, tensor.shape, name == bad)
            writer.add_tensor(names(name), data, raw_dtype=GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write(tmp_path_factory.mktemp("kept") / "mixed.gguf")


def engine(path, **options):
    return LLM(str(path), dtype="float32", skip_tokenizer_init=True, progress=False, **options)


def test_logits_are_those_of_the_file_dequantized(path, capsys):
    want = prompt_logits(engine(path), IDS)
    kept = engine(path, quantization="gguf")
    torch.testing.assert_close(prompt_logits(kept, IDS), want, atol=1e-4, rtol=1e-4)
    assert float(want.std()) > 0.1
    assert "decoded" not in capsys.readouterr().err
    held = sum(param.nbytes for param in kept.engine.executor.runner.model.parameters())
    assert 0.9 * path.stat().st_size < held < path.stat().st_size


def test_inspection_knows_the_size_in_memory_and_the_number_of_weights(path):
    plain, kept = (examine(EngineArgs(model=str(path), quantization=each)) for each in (None, "gguf"))
    assert kept["weights"]["parameters"] == plain["weights"]["parameters"]
    assert kept["weights"]["bytes_by_dtype"]["uint8"] < plain["weights"]["bytes"] / 4
    assert kept["runs_on"]["quantization"] == "gguf" and "linear_gguf" in kept["runs_on"]["ops"]


def test_blocks_with_infinite_scales_are_refused_as_other_weights_are(tmp_path):
    name = "model.layers.1.self_attn.v_proj.weight"
    broken = write(tmp_path / "broken.gguf", name)
    counts = []
    for quantization in (None, "gguf"):
        with pytest.raises(WeightsMismatch) as caught:
            engine(broken, quantization=quantization)
        assert caught.value.error_code == "NONFINITE_WEIGHTS" and caught.value.field == name
        counts.append(caught.value.value)
    assert counts[0] == counts[1]


def test_a_checkpoint_without_blocks_has_none_to_keep(tmp_path):
    config = transformers.LlamaConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="this model is none"):
        engine(tmp_path, quantization="gguf", load_format="dummy")
