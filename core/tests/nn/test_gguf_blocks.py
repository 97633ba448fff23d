"""Layers that keep a GGUF file's blocks compute what the dequantized ones do, on one rank and on several."""

import pytest
import torch
import torch.nn.functional as F

from bestiary.api.errors import ConfigError, UsageError, WeightsMismatch
from bestiary.api.ggml_types import GgmlType
from bestiary.nn import FusedMoE
from bestiary.nn.embedding import ParallelLMHead, VocabParallelEmbedding
from bestiary.nn.gguf import finite
from bestiary.nn.gguf.dequant import FLOATS, SUPPORTED, dequantize
from bestiary.nn.gguf.tensor import BlockTensor
from bestiary.nn.linear import ColumnParallelLinear, MergedColumnParallelLinear, QKVParallelLinear, RowParallelLinear
from bestiary.nn.parallel import Group, use_groups
from bestiary.nn.placement import finish, materialize, place
from bestiary.nn.quant.gguf import GgufConfig
from bestiary.nn.scope import build_scope
from bestiary.nn.weights import load_complete

BLOCKS = sorted(SUPPORTED - set(FLOATS))
Q4_0, Q4_K, Q6_K = GgmlType.Q4_0, GgmlType.Q4_K, GgmlType.Q6_K
Q8_0, MXFP4, F16 = GgmlType.Q8_0, GgmlType.MXFP4, GgmlType.F16


def blocks(kind, *shape, seed=0):
    """Random quants under small random scales, `shape` in elements."""
    generator = torch.Generator().manual_seed(seed)
    bytes_per_row = shape[-1] // kind.block_size * kind.type_size
    if kind in FLOATS:
        return BlockTensor.of(torch.randn(*shape, generator=generator).to(FLOATS[kind]).view(torch.uint8), kind)
    data = torch.randint(0, 256, (*shape[:-1], bytes_per_row), dtype=torch.uint8, generator=generator)
    each = data.view(-1, kind.type_size)
    for scale in finite._SCALES.get(kind, finite._half(0)):
        for at, mask in scale:
            each[:, at] = each[:, at] & ~mask | (mask & 0x20)  # a float16 between 2^-7 and 2^-4
    if kind is GgmlType.MXFP4:
        each[:, 0] = 120
    return BlockTensor.of(data, kind)


def decoded(tensor):
    kind, data = tensor.ggml_type, tensor.plain
    shape = (*data.shape[:-1], data.shape[-1] // kind.type_size * kind.block_size)
    return dequantize(data.numpy(), kind, shape)


class Parts(torch.nn.Module):
    """One layer, or several, under the names that a checkpoint has for them."""

    packed_modules_mapping = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}

    def __init__(self, **layers):
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)


def loaded(make, tensors, rank=0, size=1, **groups):
    """A model on one of `size` ranks, placed and loaded as an engine does it; and its configuration."""
    with use_groups(**(groups or {"tensor": Group(rank, size)})):
        model = make()
        config = GgufConfig({name: each.ggml_type for name, each in tensors.items() if isinstance(each, BlockTensor)})
        place(model, config)
        materialize(model, torch.device("cpu"))
        stream = ((name, each if name in config.kept else plain(each)) for name, each in tensors.items())
        load_complete(model, stream)
        finish(model)
    return model, config


def plain(tensor):
    return decoded(tensor) if isinstance(tensor, BlockTensor) else tensor


@pytest.fixture(autouse=True)
def _scope(vllm_config):
    with build_scope(vllm_config):
        yield


@pytest.mark.parametrize("kind", BLOCKS, ids=lambda kind: kind.name)
def test_every_type_multiplies_as_its_numbers(kind):
    width = 2 * kind.block_size
    weight = blocks(kind, 5, width)
    model, config = loaded(lambda: Parts(fc=ColumnParallelLinear(width, 5, bias=False)), {"fc.weight": weight})
    assert config.kept == {"fc.weight"} and not config.decoded
    assert model.fc.weight.nbytes == weight.nbytes
    x = torch.randn(3, width)
    want = F.linear(x, decoded(weight))
    assert torch.isfinite(want).all()
    torch.testing.assert_close(model.fc(x)[0], want, atol=1e-5 * float(want.abs().max()), rtol=1e-5)


@pytest.mark.parametrize("kind", sorted(SUPPORTED), ids=lambda kind: kind.name)
def test_what_is_not_finite_is_counted_without_decoding(kind):
    data = torch.randint(0, 256, (400, kind.type_size), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
    numbers = dequantize(data.numpy(), kind, (400, kind.block_size))
    assert finite.count_nonfinite_in_blocks(data, kind) == int((~torch.isfinite(numbers)).sum())


def test_bfloat16_activations_meet_rounded_weights():
    weight = blocks(Q4_0, 8, 64)
    layer = loaded(lambda: Parts(fc=ColumnParallelLinear(64, 8, bias=False)), {"fc.weight": weight})[0].fc
    x = torch.randn(3, 64).bfloat16()
    assert torch.equal(layer(x)[0], F.linear(x, decoded(weight).bfloat16()))


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("kinds", [(Q4_K, Q4_K, Q6_K), (Q4_0,) * 3, (Q8_0, F16, Q4_0), (F16, MXFP4, Q4_0)])
def test_a_fused_layer_has_a_type_for_each_part(kinds, size):
    head, heads, kv_heads, width = 6, 4, 2, 256
    shapes = heads * head, kv_heads * head, kv_heads * head
    parts = [blocks(kind, rows, width, seed=at) for at, (kind, rows) in enumerate(zip(kinds, shapes, strict=True))]
    biases = [torch.randn(rows) for rows in shapes]
    tensors = {f"{name}_proj.weight": part for name, part in zip("qkv", parts, strict=True)}
    tensors |= {f"{name}_proj.bias": bias for name, bias in zip("qkv", biases, strict=True)}
    x = torch.randn(3, width)
    want = [F.linear(x, decoded(part), bias).view(3, -1, head) for part, bias in zip(parts, biases, strict=True)]
    for rank in range(size):
        make = lambda: Parts(qkv_proj=QKVParallelLinear(width, head, heads, kv_heads))  # noqa: E731
        layer = loaded(make, tensors, rank, size)[0].qkv_proj
        assert layer.weight.dtype is torch.uint8
        got = [each.view(3, -1, head) for each in layer(x)[0].split(layer.split_sizes, dim=-1)]
        first = rank * layer.num_heads
        for each, wanted, at in zip(got, want, [first, *[first * kv_heads // heads] * 2], strict=True):
            torch.testing.assert_close(each, wanted[:, at : at + each.shape[1]], atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("size", [1, 2])
def test_rows_that_go_head_by_head_are_put_in_order(size):
    head, heads, width = 6, 4, 64
    weight = blocks(Q8_0, 3 * heads * head, width)
    x = torch.randn(3, width)
    want = F.linear(x, decoded(weight)).view(3, heads, 3, head)
    for rank in range(size):
        make = lambda: Parts(qkv_proj=QKVParallelLinear(width, head, heads, bias=False, interleaved=True))  # noqa: E731
        layer = loaded(make, {"qkv_proj.weight": weight}, rank, size)[0].qkv_proj
        for part, each in enumerate(layer(x)[0].split(layer.split_sizes, dim=-1)):
            own = want[:, rank * layer.num_heads : (rank + 1) * layer.num_heads, part]
            torch.testing.assert_close(each.view(own.shape), own, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [1, 2])
def test_column_then_row_layers_sum_over_ranks(size):
    gate, up, down = blocks(Q4_0, 64, 32), blocks(Q8_0, 64, 32, seed=1), blocks(Q4_0, 16, 64, seed=2)
    tensors = {"gate_proj.weight": gate, "up_proj.weight": up, "down_proj.weight": down}
    x = torch.randn(3, 32)
    want = F.linear(F.linear(x, decoded(gate)) * F.linear(x, decoded(up)), decoded(down))

    def make():
        return Parts(
            gate_up_proj=MergedColumnParallelLinear(32, [64, 64], bias=False),
            down_proj=RowParallelLinear(64, 16, bias=False),
        )

    total = 0
    for rank in range(size):
        model, _ = loaded(make, tensors, rank, size)
        left, right = model.gate_up_proj(x)[0].chunk(2, -1)
        total = total + model.down_proj(left * right)[0]
    torch.testing.assert_close(total, want, atol=1e-3, rtol=1e-4)


def test_a_share_of_inputs_that_cuts_a_block_is_refused_with_the_rule():
    weight = {"fc.weight": blocks(Q4_K, 8, 512)}
    loaded(lambda: Parts(fc=RowParallelLinear(512, 8, bias=False)), weight, 1, 2)
    with pytest.raises(UsageError, match="fc: 512 inputs in Q4_K blocks of 256 cannot be divided among 4") as caught:
        loaded(lambda: Parts(fc=RowParallelLinear(512, 8, bias=False)), weight, 1, 4)
    assert caught.value.field == "tensor_parallel_size" and "multiple of 256" in str(caught.value)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("size", [1, 2])
def test_the_vocabulary_keeps_its_blocks(size, tied):
    table, own = blocks(Q6_K, 129, 256), blocks(Q8_0, 129, 256, seed=1)
    tensors = {"embed.weight": table} if tied else {"embed.weight": table, "lm_head.weight": own}
    ids, x = torch.randint(0, 129, (11,)), torch.randn(3, 256)

    def make():
        embed, head = VocabParallelEmbedding(129, 256), ParallelLMHead(129, 256)
        return Parts(lm_head=head.tie_weights(embed) if tied else head, embed=embed)

    found, logits = 0, []
    for rank in range(size):
        model, _ = loaded(make, tensors, rank, size)
        assert (model.lm_head.weight is model.embed.weight) is tied
        found = found + model.embed(ids)
        logits.append(model.lm_head.quant_method.apply(model.lm_head, x))
    assert torch.equal(found, decoded(table)[ids])
    want = F.linear(x, decoded(table if tied else own))
    torch.testing.assert_close(torch.cat(logits, -1)[:, :129], want, atol=1e-3, rtol=1e-4)


EXPERTS, HIDDEN, WIDTH = 4, 64, 64


def experts(kinds, merged):
    """gate, up and down of all experts, and the tensors that a file has of them."""
    stacks = [blocks(kind, EXPERTS, WIDTH, HIDDEN, seed=at) for at, kind in enumerate(kinds)]
    names = ("w1", "w3", "w2")
    if merged:
        return stacks, {f"experts.{name}.weight": each for name, each in zip(names, stacks, strict=True)}
    both = list(zip(names, stacks, strict=True))
    return stacks, {f"experts.{at}.{name}.weight": each[at] for name, each in both for at in range(EXPERTS)}


def mixture(x, router, stacks):
    gate, up, down = (decoded(each) for each in stacks)
    shares = router.softmax(-1).topk(2)
    weights = shares.values / shares.values.sum(-1, keepdim=True)
    hidden = F.silu(torch.einsum("eoi,ti->teo", gate, x)) * torch.einsum("eoi,ti->teo", up, x)
    answers = torch.einsum("eoi,tei->teo", down, hidden)
    picked = answers.gather(1, shares.indices.unsqueeze(-1).expand(-1, -1, answers.shape[-1]))
    return (picked * weights.unsqueeze(-1)).sum(1)


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("kinds", [(Q4_0, Q4_0, Q8_0), (Q4_0, Q8_0, Q4_0)])
@pytest.mark.parametrize("layout", ["alone", "tensor", "expert"])
def test_experts_keep_their_blocks(kinds, merged, layout):
    stacks, tensors = experts(kinds, merged)
    x, router = torch.randn(7, HIDDEN) * 0.1, torch.randn(7, EXPERTS)
    make = lambda: Parts(experts=FusedMoE(EXPERTS, 2, HIDDEN, WIDTH, ckpt_names=("w1", "w2", "w3")))  # noqa: E731
    total = 0
    for rank in range(1 if layout == "alone" else 2):
        groups = {} if layout == "alone" else {layout: Group(rank, 2)}
        model, config = loaded(make, tensors, **groups)
        assert merged is False or not config.decoded
        assert model.experts.w13_weight.dtype is model.experts.w2_weight.dtype is torch.uint8
        total = total + model.experts(x, router)
    want = mixture(x, router, stacks)
    torch.testing.assert_close(total, want, atol=1e-4 * float(want.abs().max()), rtol=1e-3)


def test_experts_fused_in_one_tensor_keep_their_blocks():
    gate_up, down = blocks(Q4_0, EXPERTS, 2 * WIDTH, HIDDEN), blocks(Q8_0, EXPERTS, HIDDEN, WIDTH)
    make = lambda: Parts(experts=FusedMoE(EXPERTS, 2, HIDDEN, WIDTH))  # noqa: E731
    tensors = {"experts.gate_up_proj.weight": gate_up, "experts.down_proj.weight": down}
    model, config = loaded(make, tensors)
    assert not config.decoded
    x, router = torch.randn(7, HIDDEN) * 0.1, torch.randn(7, EXPERTS)
    want = mixture(x, router, [gate_up[:, :WIDTH], gate_up[:, WIDTH:], down])
    torch.testing.assert_close(model.experts(x, router), want, atol=1e-4 * float(want.abs().max()), rtol=1e-3)


def test_experts_of_different_types_cannot_be_stacked():
    _, tensors = experts((Q4_0, Q4_0, Q4_0), merged=False)
    tensors["experts.2.w2.weight"] = blocks(Q8_0, HIDDEN, WIDTH)
    with pytest.raises(ConfigError, match=r"experts\.2\.w2 is quantized differently than experts\.0\.w2"):
        loaded(lambda: Parts(experts=FusedMoE(EXPERTS, 2, HIDDEN, WIDTH, ckpt_names=("w1", "w2", "w3"))), tensors)


def test_layers_of_plain_numbers_stay_plain_and_unknown_tensors_are_told():
    tensors = {"fc.weight": blocks(F16, 8, 32), "norm.weight": blocks(Q4_0, 8, 32)}
    model, config = loaded(
        lambda: Parts(fc=ColumnParallelLinear(32, 8, bias=False), norm=torch.nn.Embedding(8, 32)), tensors
    )
    assert model.fc.weight.dtype is torch.float32 and not config.kept
    assert config.decoded == ["norm.weight"]
    assert torch.equal(model.norm.weight, decoded(tensors["norm.weight"]))


def test_a_loader_may_take_rows_apart_and_nothing_else():
    tensor = blocks(Q4_0, 4, 6, 64)
    assert all(isinstance(each, BlockTensor) and each.ggml_type is Q4_0 for each in (tensor[1], *tensor[2][1:3]))
    assert [type(each) for each in (*tensor, *tensor.split(2), *torch.chunk(tensor[0], 2))] == [BlockTensor] * 8
    assert tensor[1].data_ptr() == tensor.data_ptr() + 6 * 36
    for other in (tensor.mT, tensor[..., :18], tensor.float(), tensor + 1, tensor[..., torch.arange(36).flip(0)]):
        assert not isinstance(other, BlockTensor)

    with pytest.raises(WeightsMismatch) as caught:
        loaded(lambda: _Flipping(fc=ColumnParallelLinear(64, 6, bias=False)), {"fc.weight": tensor[0]})
    assert "expected Q4_0 blocks, the loader brings uint8 [6, 36]" in str(caught.value)


class _Flipping(Parts):
    def load_weights(self, weights):
        for name, tensor in weights:
            param = dict(self.named_parameters())[name]
            param.weight_loader(param, tensor.flip(-1))


def test_other_blocks_than_the_header_said_are_refused():
    tensors = {"fc.weight": blocks(Q4_0, 6, 64)}
    model = Parts(fc=ColumnParallelLinear(64, 6, bias=False))
    place(model, GgufConfig({"fc.weight": Q4_0}))
    materialize(model, torch.device("cpu"))
    with pytest.raises(WeightsMismatch, match="expected Q4_0 blocks, the loader brings IQ4_NL"):
        model.fc.weight.weight_loader(model.fc.weight, BlockTensor.of(tensors["fc.weight"].plain, GgmlType.IQ4_NL))
    with pytest.raises(ConfigError, match="this model is none"):
        GgufConfig.from_config({})
    assert GgufConfig({}).why_not("cuda") is None
