"""Activations against transformers' `ACT2FN`, its experts, or the formula."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN

from bestiary.api.errors import ConfigError
from bestiary.nn import activation as act

X = torch.randn(6, 40, generator=torch.Generator().manual_seed(0)) * 4
GATE, UP = X.chunk(2, -1)

ELEMENTWISE = [name for name in act._FUNCTIONS if name != "gelu_tanh"]


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise_is_transformers(name: str) -> None:
    torch.testing.assert_close(act.get_act_fn(name)(X), ACT2FN[name](X), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(
    "name", ["gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "silu", "swish", "relu", "relu2"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gated_is_act_of_gate_times_up(name: str, dtype: torch.dtype) -> None:
    gate, up = GATE.to(dtype), UP.to(dtype)
    x = torch.cat((gate, up), -1)
    tolerance = {"rtol": 1e-5, "atol": 2e-6} if dtype is torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(act.get_act_and_mul_fn(name)(x), ACT2FN[name](gate) * up, **tolerance)
    assert torch.equal(x, torch.cat((gate, up), -1))


def test_silu_and_mul_rounds_like_transformers() -> None:
    x = X.bfloat16()
    gate, up = x.chunk(2, -1)
    assert torch.equal(act.SiluAndMul()(x), F.silu(gate) * up)
    assert torch.equal(act.MulAndSilu()(x), gate * F.silu(up))


def test_clamped_and_thresholded() -> None:
    clamped = act.SiluAndMulWithClamp(2.0)(X)
    torch.testing.assert_close(clamped, F.silu(GATE.clamp(max=2)) * UP.clamp(-2, 2))
    stepped = act.SwigluStepAndMul(limit=1.5)(X)
    torch.testing.assert_close(stepped, F.silu(GATE).clamp(max=1.5) * UP.clamp(-1.5, 1.5))
    fat = act.FatreluAndMul(threshold=0.5)(X)
    torch.testing.assert_close(fat, torch.where(GATE > 0.5, GATE, 0.0) * UP)
    assert (stepped != clamped).any()
    assert (fat == 0).any()
    assert (fat != 0).any()


def test_swiglu_of_gpt_oss() -> None:
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

    experts = GptOssExperts.__new__(GptOssExperts)
    nn.Module.__init__(experts)
    experts.limit, experts.alpha = 7.0, 1.702
    assert torch.equal(act.get_act_and_mul_fn("swigluoai")(X * 4), experts._apply_gate(X * 4))


def test_sparse_gelu_of_gemma3n() -> None:
    from transformers.models.gemma3n.modeling_gemma3n import Gemma3nTextMLP

    mlp = Gemma3nTextMLP.__new__(Gemma3nTextMLP)
    nn.Module.__init__(mlp)
    mlp.activation_sparsity = 0.8
    expected = F.gelu(mlp._gaussian_topk(GATE), approximate="tanh") * UP
    torch.testing.assert_close(act.GeluAndMulSparse(activation_sparsity=0.8, approximate="tanh")(X), expected)


def test_xielu(caplog: pytest.LogCaptureFixture) -> None:
    theirs = ACT2FN["xielu"].float()
    ours = act.get_act_fn("xielu")
    assert isinstance(ours, act.XIELU)
    assert all(parameter.is_meta for parameter in ours.parameters())
    ours = act.XIELU(dtype=torch.bfloat16)
    ours.alpha_p = nn.Parameter(theirs.alpha_p.detach() + 0.25)
    ours.alpha_n = nn.Parameter(theirs.alpha_n.detach() - 0.25)
    theirs.alpha_p, theirs.alpha_n = ours.alpha_p, ours.alpha_n
    torch.testing.assert_close(ours(X), theirs(X))


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    for make in (act.get_act_fn, act.get_act_and_mul_fn):
        with pytest.raises(ConfigError, match=r"UNSUPPORTED_LAYER(?s:.)*hidden_act(?s:.)*silu"):
            make("nonsense")
    with pytest.raises(ConfigError, match="approximate"):
        act.GeluAndMul(approximate="sometimes")
    with pytest.raises(ConfigError, match="activation_sparsity"):
        act.GeluAndMulSparse(activation_sparsity=1.0)
