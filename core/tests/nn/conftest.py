"""Shared by the tests of ring 1: a build scope over a small configuration."""

from types import SimpleNamespace

import pytest
import torch

from bestiary.api.config import ModelConfig, VllmConfig
from bestiary.nn.scope import build_scope


@pytest.fixture
def vllm_config():
    hf_config = SimpleNamespace(model_type="test")
    return VllmConfig(
        model_config=ModelConfig(
            model="test",
            architecture="Test",
            hf_config=hf_config,
            hf_text_config=hf_config,
            dtype=torch.float32,
            max_model_len=64,
        )
    )


@pytest.fixture
def scope(vllm_config):
    with build_scope(vllm_config):
        yield vllm_config
