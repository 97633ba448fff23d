"""Whole models in published layouts, against transformers' model with the weights that they stand for."""

import re

import pytest
import torch

from bestiary.api.errors import ConfigError, ModelError, UsageError, WeightsMismatch

from . import tiny, writers

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True, "sym": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [16, 32]}
DECODER = re.compile(r"model\.layers|transformer\.h\.")
FORMATS = {
    "gptq": (GPTQ, lambda weight: writers.gptq(weight, ordered=True), 1e-5),
    "awq": (AWQ, writers.awq, 1e-5),
    "fp8": (FP8, lambda weight: writers.fp8(weight, block=(16, 32)), 0.06),
}


def quantized(model, write, inside=DECODER):
    """The checkpoint's tensors, the linear layers that are `inside` written by `write`; `model` has what they mean."""
    tensors = {}
    state = dict(model.state_dict())
    for name, tensor in state.items():
        if not inside.match(name) or tensor.dim() < 2:
            tensors[name] = tensor
            continue
        for part, weight in projections(name, tensor):
            made, stands_for = write(weight)
            tensors |= {f"{part}.{parameter}": value for parameter, value in made.items()}
            weight.copy_(stands_for)
    model.load_state_dict(state)
    return tensors


def projections(name, tensor):
    """A layer's matrix under its name in checkpoints; of stacked experts each by itself."""
    base = name.removesuffix(".weight").replace(".mlp.", ".block_sparse_moe." if tensor.dim() == 3 else ".mlp.")
    if tensor.dim() == 2:
        yield base, tensor
        return
    stem, _, kind = base.rpartition(".")
    for expert, each in enumerate(tensor):
        parts = each.chunk(2) if kind == "gate_up_proj" else [each]
        for leaf, part in zip(["w1", "w3"] if len(parts) == 2 else ["w2"], parts, strict=True):
            yield f"{stem}.{expert}.{leaf}", part


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("kind", list(FORMATS))
def test_a_quantized_llama(kind, device, tmp_path):
    declared, write, bound = FORMATS[kind]
    model = tiny.llama()
    with torch.no_grad():
        path = tiny.save(tmp_path, model.config, quantized(model, write), declared)
    assert tiny.off(tiny.ours(path, device=device), tiny.theirs(model)) < bound


def test_a_quantized_bloom(tmp_path):
    """Its fused projection goes head by head, and checkpoints of the bare model lack a prefix."""
    model = tiny.bloom().eval()
    with torch.no_grad():
        tensors = quantized(model, lambda weight: writers.gptq(weight, ordered=True))
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items() if name != "lm_head.weight"}
    path = tiny.save(tmp_path, model.config, bare, GPTQ)
    assert tiny.off(tiny.ours(path), tiny.theirs(model)) < 1e-5


def test_a_quantized_head(tmp_path):
    model = tiny.llama()
    with torch.no_grad():
        tensors = quantized(model, writers.awq, re.compile("model.layers|lm_head"))
    path = tiny.save(tmp_path, model.config, tensors, AWQ)
    assert "lm_head.qweight" in tensors
    assert tiny.off(tiny.ours(path), tiny.theirs(model)) < 1e-5
    assert tiny.ours(path, load_format="dummy").shape == (len(tiny.IDS), 128)


def test_quantized_experts(tmp_path):
    """The router is stored plain, as writers of checkpoints leave it, whatever their lists say."""
    model = tiny.mixtral()
    with torch.no_grad():
        tensors = {}
        for name, tensor in quantized(model, lambda weight: writers.gptq(weight, ordered=True)).items():
            tensors[name] = tensor
        for layer in range(2):
            gate = f"model.layers.{layer}.mlp.gate"
            for part in ("qweight", "qzeros", "scales", "g_idx"):
                del tensors[f"{gate}.{part}"]
            router = model.state_dict()[f"{gate}.weight"]
            tensors[f"model.layers.{layer}.block_sparse_moe.gate.weight"] = router
    path = tiny.save(tmp_path, model.config, tensors, GPTQ)
    assert tiny.off(tiny.ours(path), tiny.theirs(model)) < 1e-5


def through_e4m3(numbers):
    """What each row becomes with its own scale, by torch's conversion."""
    scale = numbers.abs().amax(-1, keepdim=True) / 448
    return (numbers / scale).to(torch.float8_e4m3fn).float() * scale


@pytest.mark.parametrize("make", [tiny.llama, tiny.mixtral])
def test_activations_rounded_while_loading(make, tmp_path):
    """transformers computes with weights that were rounded, and each layer rounds what it is given."""
    model = make()
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if ".layers." in name and "norm" not in name and not name.endswith("gate.weight"):
                tensor.copy_(through_e4m3(tensor))
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and ".layers." in name:
            module.register_forward_pre_hook(lambda _, given: tuple(through_e4m3(each) for each in given))
    if make is tiny.llama:
        assert tiny.off(tiny.ours(tmp_path, quantization="fp8_dynamic"), tiny.theirs(model)) < 1e-3
    else:
        plain, rounded = (tiny.ours(tmp_path, quantization=name) for name in ("fp8", "fp8_dynamic"))
        assert 1e-4 < tiny.off(rounded, plain) < 0.2


@pytest.fixture(scope="module")
def gptq(tmp_path_factory):
    """(path, tensors, config) of a checkpoint to be spoiled."""
    model = tiny.llama()
    with torch.no_grad():
        tensors = quantized(model, lambda weight: writers.gptq(weight))
    declared = {**GPTQ, "desc_act": False}
    return tiny.save(tmp_path_factory.mktemp("gptq"), model.config, tensors, declared), tensors, model.config


def test_another_method_cannot_be_asked_for(gptq):
    with pytest.raises(UsageError, match="quantized already") as caught:
        tiny.ours(gptq[0], quantization="int8")
    assert "gptq" in str(caught.value)
    assert tiny.ours(gptq[0], quantization="gptq").shape == (len(tiny.IDS), 128)


def test_a_method_that_reads_checkpoints_needs_one(gptq, tmp_path):
    model = tiny.llama()
    model.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="bits"):
        tiny.ours(tmp_path, quantization="gptq")


def test_parts_of_a_fused_layer_are_quantized_alike(gptq, tmp_path):
    _, tensors, config = gptq
    name = "model.layers.0.self_attn.k_proj"
    mixed = {key: value for key, value in tensors.items() if not key.startswith(name)}
    mixed[f"{name}.weight"] = torch.randn(32, 64)
    path = tiny.save(tmp_path, config, mixed, {**GPTQ, "desc_act": False})
    with pytest.raises(ConfigError, match="quantized differently") as caught:
        tiny.ours(path)
    assert "k_proj: plain" in str(caught.value)


def test_an_order_that_is_not_declared(gptq, tmp_path):
    _, tensors, config = gptq
    name = "model.layers.1.mlp.down_proj.g_idx"
    path = tiny.save(tmp_path, config, tensors | {name: tensors[name].flip(0)}, {**GPTQ, "desc_act": False})
    with pytest.raises(WeightsMismatch, match="desc_act") as caught:
        tiny.ours(path)
    assert name in str(caught.value)


def test_a_group_that_is_not_there(gptq, tmp_path):
    _, tensors, config = gptq
    name = "model.layers.1.mlp.down_proj.g_idx"
    path = tiny.save(tmp_path, config, tensors | {name: tensors[name] - 1}, GPTQ)
    with pytest.raises(WeightsMismatch, match="group that is not there"):
        tiny.ours(path)


def test_what_cannot_run_here_names_what_can(gptq, monkeypatch):
    from bestiary.nn.quant.gptq import GptqConfig

    monkeypatch.setattr(GptqConfig, "why_not", classmethod(lambda cls, device: "needs a fast car"))
    with pytest.raises(ModelError, match="needs a fast car") as caught:
        tiny.ours(gptq[0])
    assert "awq" in str(caught.value.limit) and "gptq" not in str(caught.value.limit)
