"""A tiny Llama with random weights, adapters for it, and one engine for many cheap tests."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file

from bestiary import LLM
from bestiary.testing.adapters import random_adapter, write_adapter

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(11)
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=101, max_position_embeddings=128, initializer_range=0.3, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def weights(checkpoint):
    """Module → weight, of every linear layer inside the model."""
    stored = load_file(checkpoint / "model.safetensors")
    return {
        name.removesuffix(".weight"): tensor
        for name, tensor in stored.items()
        if name.removesuffix(".weight").endswith(TARGETS)
    }


@pytest.fixture(scope="session")
def adapter(weights, tmp_path_factory):
    """`adapter(seed)`: the directory of an adapter on every linear layer; each seed's is another."""
    folder = tmp_path_factory.mktemp("adapters")

    def make(seed=0):
        path = folder / str(seed)
        return str(path) if path.exists() else write_adapter(path, random_adapter(weights, seed=seed))

    return make


def open_llm(checkpoint, **options):
    plain = {
        "dtype": "float32", "skip_tokenizer_init": True, "progress": False, "num_gpu_blocks_override": 32,
        "block_size": 4, "enable_lora": True, "max_loras": 2, "max_lora_rank": 8,
    }  # fmt: skip
    return LLM(str(checkpoint), **{**plain, **options})


@pytest.fixture(scope="session")
def engine(checkpoint):
    with open_llm(checkpoint) as llm:
        yield llm


@pytest.fixture
def llm(engine):
    """The engine, without adapters before and after."""
    yield engine
    for info in engine.list_loras():
        engine.remove_lora(info.name)


@pytest.fixture
def broken(adapter, tmp_path):
    """`broken(**fields)`: a copy of an adapter whose configuration has other fields; None leaves one out."""

    def make(**fields):
        path = tmp_path / "broken"
        path.mkdir()
        source = adapter()
        (path / "adapter_model.safetensors").symlink_to(f"{source}/adapter_model.safetensors")
        with open(f"{source}/adapter_config.json") as file:
            config = {**json.load(file), **fields}
        kept = {name: value for name, value in config.items() if name not in fields or value is not None}
        (path / "adapter_config.json").write_text(json.dumps(kept))
        return str(path)

    return make
