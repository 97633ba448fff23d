"""Published layouts, bit for bit: every layer multiplies by exactly the weights that the stored codes stand for."""

import pytest
import torch
import torch.nn.functional as F

from bestiary.api.errors import ConfigError
from bestiary.nn.quant.awq import AwqConfig
from bestiary.nn.quant.fp8 import Fp8Config
from bestiary.nn.quant.gptq import GptqConfig
from bestiary.nn.quant.grouped import Int4Config
from bestiary.nn.quant.int8 import Int8Config

from . import writers
from .conftest import HIDDEN, WIDTH, Ranks


def written(weights, write):
    """All layers in one format: (the checkpoint's tensors, the weights they stand for)."""
    tensors, stand_for = {}, {}
    for name, weight in weights.items():
        made, stand_for[name] = write(weight)
        tensors |= {f"{name}.{parameter}": value for parameter, value in made.items()}
    return tensors, stand_for


def check(ranks, config, tensors, stand_for, tolerance=2e-6):
    x, wide = torch.randn(5, HIDDEN), torch.randn(5, WIDTH)
    for name, got in ranks(config, tensors).answers(x, wide).items():
        want = F.linear(wide if name == "down_proj" else x, stand_for[name])
        assert float((got - want).abs().max() / want.abs().max()) < tolerance, name


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("options", [
    {}, {"symmetric": True}, {"ordered": True}, {"version": 2}, {"group": 64}, {"group": -1}
], ids=str)  # fmt: skip
def test_gptq(ranks, weights, bits, options):
    declared = {"bits": bits, "group_size": options.get("group", 32), "desc_act": options.get("ordered", False),
                "sym": options.get("symmetric", False), "damp_percent": 0.01, "quant_method": "gptq",
                "checkpoint_format": "gptq_v2" if options.get("version") == 2 else "gptq"}  # fmt: skip

    def write(weight):
        group = weight.shape[1] if options.get("group") == -1 else options.get("group", 32)
        return writers.gptq(weight, bits=bits, **(options | {"group": group}))

    tensors, stand_for = written(weights, write)
    check(ranks, lambda: GptqConfig.from_config(declared), tensors, stand_for)


def test_awq(ranks, weights):
    declared = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}
    tensors, stand_for = written(weights, writers.awq)
    check(ranks, lambda: AwqConfig.from_config(declared), tensors, stand_for)


@pytest.mark.parametrize("kind", ["gptq", "awq", "fp8"])
def test_layers_that_the_checkpoint_has_fused(ranks, weights, kind):
    declared, config, write, tolerance = {
        "gptq": ({"bits": 8, "group_size": 32}, GptqConfig, lambda weight: writers.gptq(weight, bits=8), 2e-6),
        "awq": ({"bits": 4, "group_size": 32}, AwqConfig, writers.awq, 2e-6),
        "fp8": ({"quant_method": "fp8"}, Fp8Config, writers.fp8, 0.06),
    }[kind]
    parts = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
    fused = {name: torch.cat([weights[part] for part in names]) for name, names in parts.items()}
    tensors, stand_for = written(fused | {"down_proj": weights["down_proj"]}, write)
    for name, names in parts.items():
        sizes = [len(weights[part]) for part in names]
        stand_for |= dict(zip(names, stand_for[name].split(sizes), strict=True))
    check(ranks, lambda: config.from_config(declared), tensors, stand_for, tolerance)


def test_a_cut_through_a_group_is_refused(weights, vllm_config):
    for config, declared, write, size in (
        (GptqConfig, {"bits": 4, "group_size": 64}, lambda weight: writers.gptq(weight, group=64), 4),
        (
            Fp8Config,
            {"quant_method": "fp8", "weight_block_size": [32, 64]},
            lambda w: writers.fp8(w, block=(32, 64)),
            2,
        ),
    ):
        tensors, _ = written(weights, write)
        with pytest.raises(ConfigError, match="cannot be divided among") as caught:
            Ranks(lambda: config.from_config(declared), tensors, size, vllm_config)  # noqa: B023
        assert caught.value.field == "tensor_parallel_size" and "whole groups" in str(caught.value.limit)


@pytest.mark.parametrize("method", [Int8Config, Int4Config, Fp8Config], ids=lambda each: each.name)
def test_while_loading_ranks_round_as_one_would(method, weights, vllm_config):
    x, wide = torch.randn(5, HIDDEN), torch.randn(5, WIDTH)
    plain = {f"{name}.weight": weight for name, weight in weights.items()}
    one, two = (Ranks(lambda: method.from_config({}), plain, size, vllm_config).answers(x, wide) for size in (1, 2))
    for name, got in two.items():
        want = F.linear(wide if name == "down_proj" else x, weights[name])
        assert 0 < float((one[name] - want).abs().max() / want.abs().max()) < 0.2, name
        torch.testing.assert_close(got, one[name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("block", [(16, 16), (16, 64)])
def test_fp8_in_blocks(ranks, weights, block):
    declared = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": list(block)}
    tensors, stand_for = written(weights, lambda weight: writers.fp8(weight, block=block))
    check(ranks, lambda: Fp8Config.from_config(declared), tensors, stand_for, tolerance=0.06)


@pytest.mark.parametrize("scheme", ["static", "dynamic"])
def test_fp8_with_a_scale_for_each_matrix(ranks, weights, scheme):
    declared = {"quant_method": "fp8", "activation_scheme": scheme}
    given = {"input_scale": 0.01} if scheme == "static" else {}
    tensors, stand_for = written(weights, lambda weight: writers.fp8(weight, **given))
    check(ranks, lambda: Fp8Config.from_config(declared), tensors, stand_for, tolerance=0.06)
