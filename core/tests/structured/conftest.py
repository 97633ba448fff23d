"""A tiny random Llama over bytes, and an `LLM` of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from bestiary import LLM

from .vocabularies import BOS, EOS, byte_level

CONTEXT = 512


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its logits are a little wider than its vocabulary."""
    directory = tmp_path_factory.mktemp("tiny")
    tokenizer = byte_level()
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=tokenizer.get_vocab_size() + 5, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=CONTEXT, initializer_range=0.3,
        bos_token_id=BOS, eos_token_id=EOS, tie_word_embeddings=True, dtype="float32",
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def engine(checkpoint: Path) -> Iterator[Callable[..., LLM]]:
    """`engine(**options)`: an `LLM`, made once for each set of options."""
    made: dict[Any, LLM] = {}

    def make(**options: Any) -> LLM:
        key = tuple(sorted(options.items()))
        if key not in made:
            made[key] = LLM(str(checkpoint), dtype="float32", progress=False, **options)
        return made[key]

    yield make
    for llm in made.values():
        llm.close()


@pytest.fixture(scope="session")
def llm(engine: Callable[..., LLM]) -> LLM:
    return engine()
