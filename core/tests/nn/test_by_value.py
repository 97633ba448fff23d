"""Elementwise functions under `by_value`: every element's bits are those it has alone, whatever it stands among."""

import pytest
import torch
import torch.nn.functional as F

from bestiary.nn.ops.by_value import by_value

FUNCTIONS = {
    "sigmoid": torch.sigmoid,
    "exp": torch.exp,
    "tanh": torch.tanh,
    "erf": torch.erf,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
    "softplus": F.softplus,
    "log sigmoid": F.logsigmoid,
    "in place": lambda x: x.clone().sigmoid_(),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_element_has_the_bits_it_has_alone(name, dtype):
    x = (torch.randn(19, 37, generator=torch.Generator().manual_seed(0)) * 3).to(dtype)
    function = FUNCTIONS[name]
    with torch.inference_mode(), by_value():
        whole = function(x)
        alone = torch.stack([function(each.reshape(1)) for each in x.flatten()]).view(x.shape)
        column = function(x[:, 5:6])
        large = function(x.repeat(200, 1))[-19:]
    assert torch.equal(whole, alone)
    assert torch.equal(column, whole[:, 5:6])
    assert torch.equal(large, whole)
    assert whole.dtype is dtype and whole.is_contiguous()
    torch.testing.assert_close(whole, function(x))


def test_without_it_they_differ():
    """What the mode is for; if this fails one day, it can go."""
    x = torch.randn(64, 37, generator=torch.Generator().manual_seed(0)) * 3
    alone = torch.stack([torch.sigmoid(each.reshape(1)) for each in x.flatten()]).view(x.shape)
    if torch.backends.cpu.get_cpu_capability() == "DEFAULT":
        pytest.skip("this CPU has no vectors")
    assert not torch.equal(torch.sigmoid(x), alone)


def test_in_place_functions_change_their_argument_and_integers_pass():
    x = torch.tensor([0.0, 1.0])
    with by_value():
        assert x.exp_() is x
        assert torch.equal(torch.exp(torch.tensor([0, 1])), torch.exp(torch.tensor([0.0, 1.0])))
    assert x.tolist() == pytest.approx([1.0, 2.718282])
