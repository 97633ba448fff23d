"""Published layouts, bit for bit: every layer multiplies by exactly the weights that the stored codes stand for."""

import pytest
import torch
import torch.nn.functional as F

from bestiary.nn.quant.awq import AwqConfig
from bestiary.nn.quant.fp8 import Fp8Config
from bestiary.nn.quant.gptq import GptqConfig

from . import writers
from .conftest import HIDDEN, WIDTH


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
