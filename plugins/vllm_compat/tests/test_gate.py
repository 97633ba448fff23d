"""A router's gate: logits in a dtype of their own, whatever kernels would make of its weight."""

import pytest
import torch
from torch import nn

from bestiary.nn.quant.base import UnquantizedLinearMethod
from bestiary_vllm.shims.moe.gate import GateLinear


@pytest.mark.parametrize(("dtype", "out_dtype"), [(torch.bfloat16, torch.float32), (torch.float32, torch.float32)])
def test_the_weight_stays_plain_and_logits_are_computed_in_the_wider_dtype(dtype, out_dtype, monkeypatch):
    monkeypatch.setattr(UnquantizedLinearMethod, "process_weights_after_loading", lambda *_: pytest.fail("packed"))
    gate = GateLinear(16, 4, params_dtype=dtype, out_dtype=out_dtype)
    generator = torch.Generator().manual_seed(0)
    gate.weight = nn.Parameter(torch.randn(4, 16, generator=generator).to(dtype), requires_grad=False)
    gate.finish()
    x = torch.randn(3, 16, generator=generator).to(dtype)
    logits, bias = gate(x)
    assert (logits.dtype, bias) == (out_dtype, None)
    torch.testing.assert_close(logits, x.float() @ gate.weight.float().T)
