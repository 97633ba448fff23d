"""A small model of fused, column- and row-parallel layers, loaded from quantized tensors on one rank or several."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from bestiary.api.config import ModelConfig, VllmConfig
from bestiary.nn import MergedColumnParallelLinear, QKVParallelLinear, RowParallelLinear
from bestiary.nn.parallel import Group, use_groups
from bestiary.nn.placement import finish, materialize, place
from bestiary.nn.scope import build_scope
from bestiary.nn.weights import load_complete

HIDDEN, WIDTH, HEADS, KV_HEADS = 64, 128, 4, 2
SHAPES = {
    "q_proj": (HIDDEN, HIDDEN), "k_proj": (HIDDEN // 2, HIDDEN), "v_proj": (HIDDEN // 2, HIDDEN),
    "gate_proj": (WIDTH, HIDDEN), "up_proj": (WIDTH, HIDDEN), "down_proj": (HIDDEN, WIDTH),
}  # fmt: skip


class Layers(nn.Module):
    packed_modules_mapping = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}

    def __init__(self):
        super().__init__()
        self.qkv_proj = QKVParallelLinear(HIDDEN, HIDDEN // HEADS, HEADS, KV_HEADS, bias=False)
        self.gate_up_proj = MergedColumnParallelLinear(HIDDEN, [WIDTH, WIDTH], bias=False)
        self.down_proj = RowParallelLinear(WIDTH, HIDDEN, bias=False, reduce_results=False)


class Ranks:
    """`Layers` on each of `size` ranks, loaded from the same tensors."""

    def __init__(self, config, tensors, size, vllm_config):
        self.models = []
        for rank in range(size):
            quantization = config()
            quantization.stored = frozenset(tensors)
            with use_groups(tensor=Group(rank, size)), build_scope(vllm_config):
                model = Layers()
                place(model, quantization)
                materialize(model, torch.device("cpu"))
                load_complete(model, quantization.checkpoint_weights(iter(tensors.items())))
                finish(model)
            self.models.append(model)

    def fused(self, name, x):
        """The parts of a fused layer, each joined from all ranks."""
        parts = [torch.split(each(x)[0], each.output_partition_sizes, -1) for each in self._layers(name)]
        return [torch.cat(part, -1) for part in zip(*parts, strict=True)]

    def row(self, name, x):
        shares = x.chunk(len(self.models), -1)
        return sum(layer(share)[0] for layer, share in zip(self._layers(name), shares, strict=True))

    def _layers(self, name):
        return [getattr(model, name) for model in self.models]

    def answers(self, x, wide):
        """The products of all six matrices by name; x ``[…, HIDDEN]``, wide ``[…, WIDTH]``."""
        names = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj")
        found = [*self.fused("qkv_proj", x), *self.fused("gate_up_proj", x), self.row("down_proj", wide)]
        return dict(zip(names, found, strict=True))


@pytest.fixture
def vllm_config():
    hf_config = SimpleNamespace(model_type="test")
    model = ModelConfig(
        model="test", architecture="Test", hf_config=hf_config, hf_text_config=hf_config, dtype=torch.float32,
        max_model_len=64,
    )  # fmt: skip
    return VllmConfig(model_config=model)


@pytest.fixture(params=[1, 2], ids=["one rank", "two ranks"])
def ranks(request, vllm_config):
    return lambda config, tensors: Ranks(config, tensors, request.param, vllm_config)


@pytest.fixture
def weights():
    torch.manual_seed(0)
    return {name: torch.randn(shape) * 0.1 for name, shape in SHAPES.items()}
