"""Experts in vLLM's spelling, piece by piece: what surrounds them, loaders, functions."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bestiary.api.config import ModelConfig, VllmConfig
from bestiary.api.errors import ConfigError, WeightsMismatch
from bestiary.nn import FusedMoE as CoreFusedMoE
from bestiary.nn.ops.moe import topk_routing
from bestiary.nn.parallel import Group, use_groups
from bestiary.nn.placement import materialize, place
from bestiary.nn.scope import build_scope
from bestiary_vllm.shims import custom_ops
from bestiary_vllm.shims.attention import Attention, ChunkedLocalAttention
from bestiary_vllm.shims.moe import kernel_parts
from bestiary_vllm.shims.moe.experts import Experts, fused_moe_make_expert_params_mapping
from bestiary_vllm.shims.moe.functions import (
    MoEActivation,
    fused_experts,
    fused_moe,
    fused_topk,
    grouped_topk,
    maybe_remap_moe_expert_param_name,
)
from bestiary_vllm.shims.moe.older import FusedMoE, SharedFusedMoE, ZeroExpertFusedMoE
from bestiary_vllm.shims.moe.runner import FusedMoEFactory, MoERunner, RoutedExperts
from bestiary_vllm.shims.moe.settings import FusedMoEParallelConfig, activation_of, activation_without_mul

EXPERTS, TOP_K, HIDDEN, WIDTH = 4, 2, 16, 12
SIZES = {"num_experts": EXPERTS, "top_k": TOP_K, "hidden_size": HIDDEN, "intermediate_size": WIDTH}


class Block(nn.Module):
    def __init__(self, make, **options):
        super().__init__()
        self.experts = make(**SIZES, params_dtype=torch.float32, **options)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.4


W13, W2 = draw(EXPERTS, 2 * WIDTH, HIDDEN), draw(EXPERTS, HIDDEN, WIDTH, seed=1)
X, LOGITS = draw(7, HIDDEN, seed=2) * 3, draw(7, EXPERTS, seed=3) * 5


def built(make, w13=W13, w2=W2, **options):
    block = Block(make, **options)
    place(block, None)
    materialize(block, torch.device("cpu"))
    params = {name.rpartition(".")[2]: param for name, param in block.named_parameters()}
    params["w13_weight"].data.copy_(w13)
    params["w2_weight"].data.copy_(w2)
    return block.experts


def routed(x=X, logits=LOGITS, renormalize=True):
    plain = built(CoreFusedMoE, renormalize=renormalize)
    return plain(x, logits)


def linear(weight, x):
    """A module's answer as vLLM's linear layers give it."""
    return F.linear(x, weight), None


class Shared(nn.Module):
    def forward(self, x):
        return x * 0.5


class Gate(nn.Module):
    def __init__(self, experts=EXPERTS):
        super().__init__()
        self.rows = draw(experts, HIDDEN, seed=4)

    def forward(self, x):
        return linear(self.rows, x)


@pytest.mark.parametrize("make", [FusedMoEFactory, FusedMoE])
def test_what_surrounds_experts(make):
    x, logits = X, LOGITS
    torch.testing.assert_close(built(make)(x, logits), routed())
    torch.testing.assert_close(built(make, shared_experts=Shared())(x, logits), routed() + 0.5 * x)
    own = built(make, gate=Gate(), shared_experts=Shared())
    assert own.is_internal_router and not built(make).is_internal_router
    torch.testing.assert_close(own(x, x), routed(logits=Gate()(x)[0]) + 0.5 * x)
    torch.testing.assert_close(own(hidden_states=x), own(x, x))
    with pytest.raises(ConfigError, match="no gate"):
        built(make)(x)
    scaled = built(make, shared_experts=Shared(), routed_scaling_factor=2.0)
    torch.testing.assert_close(scaled(x, logits), 2 * routed() + 0.5 * x)
    after = built(make, shared_experts=Shared(), routed_scaling_factor=2.0, apply_routed_scale_to_output=True)
    torch.testing.assert_close(after(x, logits), 2 * routed() + 0.5 * x)


@pytest.mark.parametrize("make", [FusedMoEFactory, FusedMoE])
def test_shared_experts_behind_a_gate_and_experts_between_transforms(make):
    weighted = built(make, shared_experts=Shared(), shared_expert_gate=lambda x: (x[:, :1], None))
    torch.testing.assert_close(weighted(X, LOGITS), routed() + 0.5 * X * X[:, :1].sigmoid())
    between = built(
        make,
        shared_experts=Shared(),
        routed_input_transform=lambda x: -x,
        routed_output_transform=lambda x: (3 * x, None),
    )
    torch.testing.assert_close(between(X, LOGITS), 3 * routed(-X) + 0.5 * X)


def test_a_pair_of_what_shared_and_routed_experts_say():
    layer = built(SharedFusedMoE, shared_experts=Shared(), gate=None, use_overlapped=False)
    shared, answer = layer(hidden_states=X, router_logits=LOGITS)
    torch.testing.assert_close((shared, answer), (0.5 * X, routed()))
    assert list(layer.children()) == [] and len(layer.expert_tensors(0)) == 2
    assert built(SharedFusedMoE, shared_experts=None)(X, LOGITS)[0] is None


def test_a_factory_in_the_guise_of_a_class():
    class Own(RoutedExperts):
        def __init__(self, *args, mark, **kwargs):
            super().__init__(*args, **kwargs)
            self.mark = mark

    layer = built(FusedMoE, routed_experts_cls=Own, routed_experts_args={"mark": 5})
    assert isinstance(layer, MoERunner) and (layer.routed_experts.mark, layer.mark) == (5, 5)
    assert isinstance(built(FusedMoE), FusedMoE)


ZERO = {
    "factory": partial(FusedMoEFactory, zero_expert_type="identity"),
    "0.11": partial(FusedMoE, zero_expert_num=2, zero_expert_type="identity"),
}


@pytest.mark.parametrize("spelling", [*ZERO, "0.15"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_zero_experts_give_a_token_back(spelling, ranks):
    logits, bias = draw(7, EXPERTS + 2, seed=6) * 4, draw(EXPERTS + 2, seed=7)
    weights, ids = topk_routing(logits, TOP_K, False, "softmax", bias)
    assert bool((ids >= EXPERTS).any()) and bool((ids < EXPERTS).any())
    kept = (weights * (ids >= EXPERTS)).sum(-1, keepdim=True)
    real = built(CoreFusedMoE).combine(X, weights, ids.masked_fill(ids >= EXPERTS, -1))
    make = ZERO.get(spelling)
    if make is None:
        router = nn.Module()
        router.e_score_correction_bias = bias
        make = partial(ZeroExpertFusedMoE, zero_expert_num=2, zero_expert_type="identity", router=router)
    parts = []
    for rank in range(ranks):
        share = WIDTH // ranks
        rows = torch.arange(rank * share, (rank + 1) * share)
        with use_groups(tensor=Group(rank, ranks)):
            layer = built(
                make, W13[:, torch.cat((rows, WIDTH + rows))], W2[..., rows],
                renormalize=False, e_score_correction_bias=bias, reduce_results=False,
            )  # fmt: skip
        parts.append(layer(X, logits))
    torch.testing.assert_close(sum(parts), real + kept * X, atol=1e-5, rtol=1e-5)
    with pytest.raises(ConfigError, match="without weights"):
        built(FusedMoEFactory, zero_expert_type="other")


def test_loading_by_parameter_expert_and_shard():
    layer = built(FusedMoE, torch.zeros_like(W13), torch.zeros_like(W2))
    w13, w2 = layer.w13_weight, layer.w2_weight
    for expert in range(EXPERTS):
        gate, up = W13[expert].chunk(2)
        assert w13.weight_loader(w13, gate, "w13_weight", shard_id="w1", expert_id=expert) is None
        assert w13.weight_loader(w13, up, "w13_weight", "w3", expert, return_success=True) is True
        w2.weight_loader(w2, W2[expert], "w2_weight", shard_id="w2", expert_id=expert)
    assert torch.equal(w13, W13) and torch.equal(w2, W2)
    whole = built(FusedMoE, torch.zeros_like(W13), torch.zeros_like(W2))
    gates, ups = W13.chunk(2, 1)
    whole.weight_loader(whole.w13_weight, ups, "", "w3")
    whole.weight_loader(whole.w13_weight, gates, "", "w1", 0)
    whole.weight_loader(whole.w2_weight, W2)
    assert torch.equal(whole.w13_weight, W13) and torch.equal(whole.w2_weight, W2)
    with pytest.raises(WeightsMismatch, match="has no shard"):
        w2.weight_loader(w2, W2[0], "w2_weight", "w1", 0)
    with pytest.raises(WeightsMismatch, match="no parameter of these experts"):
        layer.weight_loader(nn.Parameter(W2), W2)


def test_loading_among_ranks_that_hold_whole_experts():
    for rank in range(2):
        with use_groups(expert=Group(rank, 2)):
            layer = built(FusedMoE, torch.zeros(2, 2 * WIDTH, HIDDEN), torch.zeros(2, HIDDEN, WIDTH))
        assert (layer.use_ep, layer.ep_size, layer.local_num_experts, layer.global_num_experts) == (True, 2, 2, EXPERTS)
        held = [2 * rank, 2 * rank + 1]
        assert layer.expert_map.tolist() == [held.index(e) if e in held else -1 for e in range(EXPERTS)]
        found = [
            layer.weight_loader(layer.w2_weight, W2[e], "w2_weight", "w2", e, return_success=True)
            for e in range(EXPERTS)
        ]  # fmt: skip
        assert found == [e in held for e in range(EXPERTS)]
        assert torch.equal(layer.w2_weight, W2[held])
        assert layer.weight_loader(layer.w13_weight, W13[held], "w13_weight", return_success=True) is True
        assert torch.equal(layer.w13_weight, W13[held])


def test_transposed_stacks_and_tensors_beside_the_experts():
    layer = built(FusedMoEFactory, 0 * W13, 0 * W2, is_fused_checkpoint_transposed=True)
    layer.routed_experts.register_parameter("beside", nn.Parameter(torch.zeros(3)))
    loaded = layer.load_weights(
        [("gate_up_proj", W13.mT), ("routed_experts.down_proj", W2.mT), ("beside", torch.ones(3))]
    )
    assert loaded == {"routed_experts.w13_weight", "routed_experts.w2_weight", "routed_experts.beside"}
    torch.testing.assert_close(layer(X, LOGITS), routed())
    assert layer.routed_experts.beside.tolist() == [1, 1, 1]


def test_names_with_and_without_the_module_in_between():
    now, old = Block(FusedMoEFactory), Block(FusedMoE)
    options = ("w1", "w2", "w3", EXPERTS)
    assert Experts.make_expert_params_mapping(None, *options)[:3] == [
        ("experts.w13_", "experts.0.w1.", 0, "w1"),
        ("experts.w2_", "experts.0.w2.", 0, "w2"),
        ("experts.w13_", "experts.0.w3.", 0, "w3"),
    ]
    assert fused_moe_make_expert_params_mapping(old, *options)[0][0] == "experts.w13_"
    assert fused_moe_make_expert_params_mapping(now, *options)[0][0] == "experts.routed_experts.w13_"
    assert len(fused_moe_make_expert_params_mapping(now, None, "down_proj", "up_proj", EXPERTS)) == 2 * EXPERTS
    held = dict(nn.ModuleDict({"mlp": now}).named_parameters())
    assert maybe_remap_moe_expert_param_name("mlp.experts.w2_weight", held) == "mlp.experts.routed_experts.w2_weight"
    assert maybe_remap_moe_expert_param_name("mlp.gate.weight", held) == "mlp.gate.weight"
    both = dict(now.named_parameters(remove_duplicate=False))
    assert both["experts.w13_weight"] is both["experts.routed_experts.w13_weight"]
    assert [name for name, _ in now.named_modules()] == ["", "experts", "experts.routed_experts"]
    assert dict(now.named_modules(remove_duplicate=False))["experts"] is now.experts


def test_routing_and_experts_as_functions():
    weights, ids, rows = fused_topk(X, LOGITS, TOP_K, True)
    assert (weights.dtype, ids.dtype, rows.shape) == (torch.float32, torch.int32, ids.shape)
    assert sorted(rows.flatten().tolist()) == list(range(ids.numel()))
    torch.testing.assert_close(fused_experts(X, W13, W2, weights, ids), routed())
    x = X.clone()
    assert fused_experts(x, W13, W2, weights, ids, inplace=True) is x
    torch.testing.assert_close(x, routed())
    torch.testing.assert_close(fused_moe(X, W13, W2, LOGITS, TOP_K, renormalize=True), routed())
    with pytest.raises(ConfigError, match="use_fp8_w8a8"):
        fused_experts(X, W13, W2, weights, ids, use_fp8_w8a8=True)
    bias = draw(EXPERTS, seed=8)
    share, chosen = grouped_topk(X, LOGITS, 1, False, 2, 1, "sigmoid", 2.5, bias)
    want = topk_routing(LOGITS, 1, False, "sigmoid", bias, 2, 1)
    torch.testing.assert_close((share, chosen.long()), (want[0] * 2.5, want[1]))


def test_one_product_of_every_expert_step_by_step():
    weights, ids, _ = fused_topk(X, LOGITS, TOP_K, True)
    config = kernel_parts.try_get_optimal_moe_config(W13.shape, W2.shape, TOP_K, None, M=len(X), block_shape=None)
    x, scale = kernel_parts.moe_kernel_quantize_input(A=X, A_scale=None, quant_dtype=None, block_shape=None)
    here = torch.tensor([0, -1, 1, 2], dtype=torch.int32)
    slots, *rest = kernel_parts._prepare_expert_assignment(ids, config, len(X), TOP_K, EXPERTS, here)
    made, output, bias = torch.empty(len(X), TOP_K, 2 * WIDTH), torch.empty(len(X), 2 * WIDTH), draw(3, 2 * WIDTH)
    held = W13[[0, 2, 3]]
    kernel_parts.dispatch_fused_moe_kernel(
        x, held, made, scale, None, None, weights, slots, *rest, True, TOP_K, config, use_fp8_w8a8=False, B_bias=bias
    )
    custom_ops.moe_sum(made, output)
    want = torch.zeros_like(output)
    for token in range(len(X)):
        for share, slot in zip(weights[token], here[ids[token].long()], strict=True):
            if slot >= 0:
                want[token] += share * (held[slot] @ X[token] + bias[slot])
    torch.testing.assert_close(output, want, atol=1e-5, rtol=1e-5)
    with pytest.raises(ConfigError, match="use_int8_w8a8"):
        kernel_parts._get_config_quant_dtype(use_fp8_w8a8=False, use_int8_w8a8=True)


def test_a_norm_written_to_where_it_is_told():
    out = torch.empty_like(X)
    custom_ops.rms_norm(out, X, torch.full((HIDDEN,), 2.0), 1e-5)
    torch.testing.assert_close(out, 2 * F.rms_norm(X, (HIDDEN,), None, 1e-5))


def test_activations_by_name():
    x = draw(5, 2 * WIDTH, seed=9) * 6
    gate, up = x.chunk(2, -1)
    assert activation_of("silu") == "silu" and activation_of("gelu_pytorch_tanh") == "gelu_tanh"
    assert activation_without_mul(activation_without_mul("relu2")) == activation_of(MoEActivation.RELU2_NO_MUL)
    torch.testing.assert_close(activation_of("relu2")(x), F.relu(gate).square() * up)
    clamped = F.silu(gate.clamp(max=2.0)) * up.clamp(-2, 2)
    torch.testing.assert_close(activation_of("silu", limit=2.0)(x), clamped)
    low, high = gate.clamp(max=7.0), up.clamp(-7, 7)
    torch.testing.assert_close(
        activation_of("swigluoai_uninterleave")(x), low * torch.sigmoid(1.702 * low) * (high + 1)
    )
    turns = torch.stack((gate, up), -1).flatten(-2)
    torch.testing.assert_close(activation_of("swigluoai")(turns), activation_of("swigluoai_uninterleave")(x))


def test_ranks_among_which_an_expert_is_divided():
    with use_groups(tensor=Group(1, 2)):
        assert FusedMoEParallelConfig.flatten_tp_across_dp_and_pcp(tp_size=2, dp_size=1, dp_rank=0) == (2, 1)
        here = FusedMoEParallelConfig.here()
        assert (here.tp_size, here.tp_rank, here.use_ep) == (2, 1, False)
        layer = Block(FusedMoEFactory).experts
    assert layer.moe_config.intermediate_size_per_partition == WIDTH // 2
    with use_groups(expert=Group(1, 2)):
        assert FusedMoEParallelConfig.here().use_ep


def test_attention_in_chunks_as_llama_4_asked_for_it(caplog):
    hf_config = SimpleNamespace(model_type="llama4_text", attention_chunk_size=8)
    config = ModelConfig(
        model="test", architecture="Test", hf_config=hf_config, hf_text_config=hf_config, dtype=torch.float32,
        max_model_len=64,
    )  # fmt: skip
    with build_scope(VllmConfig(model_config=config)):
        whole = Attention(4, 16, 0.25, num_kv_heads=2, use_irope=False)
        chunked = Attention(4, 16, 0.25, num_kv_heads=2, use_irope=True)
    assert isinstance(whole, Attention) and isinstance(chunked, ChunkedLocalAttention)
    assert (chunked.attention_chunk_size, chunked.num_kv_heads) == (8, 2)
    assert "Attention(use_irope=) is an older spelling" in caplog.text
