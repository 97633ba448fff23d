"""FusedMoE: routing, experts, both layouts among ranks, spare copies, and every way checkpoints name experts."""

import pytest
import torch
from transformers import DeepseekV3Config, MixtralConfig, Qwen2MoeConfig
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeTopKRouter

from bestiary.api.errors import ConfigError, UsageError, WeightsMismatch
from bestiary.nn import AutoWeightsLoader, FusedMoE, GateLinear
from bestiary.nn.moe.names import place_of
from bestiary.nn.moe.placement import ExpertPlacement
from bestiary.nn.ops.linear import FIXED_TILE
from bestiary.nn.ops.moe import fused_experts, grouped_experts, topk_routing
from bestiary.nn.ops.registry import Target, choose_ops
from bestiary.nn.parallel import Group, use_groups
from bestiary.nn.placement import finish, materialize, place
from bestiary.nn.quant.fp8 import Fp8AtLoadConfig
from bestiary.nn.quant.grouped import Int4Config
from bestiary.nn.quant.int8 import Int8Config
from bestiary.nn.weights import load_complete

EXPERTS, HIDDEN, WIDTH = 6, 24, 40


class Sparse(torch.nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.experts = FusedMoE(EXPERTS, 2, HIDDEN, WIDTH, params_dtype=torch.float32, **options)


def weights(seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator) * 0.3

    return {
        "gate": draw(EXPERTS, WIDTH, HIDDEN),
        "up": draw(EXPERTS, WIDTH, HIDDEN),
        "down": draw(EXPERTS, HIDDEN, WIDTH),
    }


def per_expert(stacks, names=("gate_proj", "down_proj", "up_proj")):
    for which, name in zip(("gate", "down", "up"), names, strict=True):
        for expert, tensor in enumerate(stacks[which]):
            yield f"experts.{expert}.{name}.weight", tensor


def with_biases():
    yield from per_expert(weights())
    for which, size in (("gate_proj", WIDTH), ("up_proj", WIDTH), ("down_proj", HIDDEN)):
        for expert in range(EXPERTS):
            yield f"experts.{expert}.{which}.bias", torch.linspace(-1, 1, size) * (expert + 1)


def loaded(stream=None, quant_config=None, **options):
    model = Sparse(**options)
    place(model, quant_config)
    materialize(model, torch.device("cpu"))
    load_complete(model, per_expert(weights()) if stream is None else stream)
    finish(model)
    return model.experts


def inputs(tokens=9, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, HIDDEN, generator=generator), torch.randn(tokens, EXPERTS, generator=generator) * 2


def by_hand(x, logits, stacks, top_k=2):
    """The definition, token by token."""
    rows = []
    for row, scores in zip(x, logits.softmax(-1), strict=True):
        best = scores.topk(top_k)
        shares = best.values / best.values.sum()
        total = torch.zeros(HIDDEN)
        for share, expert in zip(shares, best.indices, strict=True):
            hidden = torch.nn.functional.silu(stacks["gate"][expert] @ row) * (stacks["up"][expert] @ row)
            total += share * (stacks["down"][expert] @ hidden)
        rows.append(total)
    return torch.stack(rows)


def test_the_layer_is_its_definition():
    x, logits = inputs()
    torch.testing.assert_close(loaded()(x, logits), by_hand(x, logits, weights()), atol=1e-5, rtol=1e-5)


def test_no_tokens_and_one_expert_for_all():
    layer = loaded()
    assert layer(torch.empty(0, HIDDEN), torch.empty(0, EXPERTS)).shape == (0, HIDDEN)
    x, _ = inputs()
    same = torch.tensor([9.0, 8.0, 0, 0, 0, 0]).expand(len(x), -1)
    torch.testing.assert_close(layer(x, same), by_hand(x, same, weights()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
def test_other_activations(activation):
    x, logits = inputs()
    approximate = "tanh" if activation == "gelu_tanh" else "none"
    share, ids = topk_routing(logits, 2, True)
    stacks = weights()
    want = torch.zeros_like(x)
    for token in range(len(x)):
        for weight, expert in zip(share[token], ids[token], strict=True):
            gate = torch.nn.functional.gelu(stacks["gate"][expert] @ x[token], approximate=approximate)
            want[token] += weight * (stacks["down"][expert] @ (gate * (stacks["up"][expert] @ x[token])))
    torch.testing.assert_close(loaded(activation=activation)(x, logits), want, atol=1e-5, rtol=1e-5)


def test_routing_equals_transformers_mixtral_and_qwen():
    config = MixtralConfig(hidden_size=HIDDEN, intermediate_size=WIDTH, num_local_experts=EXPERTS)
    block = MixtralSparseMoeBlock(config).eval()
    for param in block.parameters():
        torch.nn.init.normal_(param, std=0.3)
    x, _ = inputs()
    with torch.inference_mode():
        logits, share, ids = block.gate(x)
        got = topk_routing(logits, 2, True)
        torch.testing.assert_close(got[0], share)
        assert torch.equal(got[1], ids)
        fused = fused_experts(x, block.experts.gate_up_proj, block.experts.down_proj, *got, "silu")
        torch.testing.assert_close(fused, block(x[None])[0], atol=1e-5, rtol=1e-5)
    for renormalize in (True, False):
        router = Qwen2MoeTopKRouter(
            Qwen2MoeConfig(hidden_size=HIDDEN, num_experts=EXPERTS, num_experts_per_tok=3, norm_topk_prob=renormalize)
        )
        torch.nn.init.normal_(router.weight)
        with torch.inference_mode():
            logits, share, ids = router(x)
        got = topk_routing(logits, 3, renormalize)
        torch.testing.assert_close(got[0], share)
        assert torch.equal(got[1], ids)


def test_grouped_routing_with_a_correction_bias_equals_transformers_deepseek():
    config = DeepseekV3Config(
        hidden_size=HIDDEN, moe_intermediate_size=WIDTH, intermediate_size=WIDTH, n_routed_experts=12, n_group=4,
        topk_group=2, num_experts_per_tok=3, routed_scaling_factor=2.5, norm_topk_prob=True, n_shared_experts=1,
    )  # fmt: skip
    router = DeepseekV3TopkRouter(config).eval()
    torch.nn.init.normal_(router.weight)
    torch.nn.init.normal_(router.e_score_correction_bias, std=0.2)
    x, _ = inputs(40)
    with torch.inference_mode():
        logits, wanted, wanted_ids = router(x)
    share, ids = topk_routing(logits, 3, True, "sigmoid", router.e_score_correction_bias, 4, 2)
    for token in range(len(x)):
        want = dict(zip(wanted_ids[token].tolist(), wanted[token].tolist(), strict=True))
        got = dict(zip(ids[token].tolist(), (share[token] * 2.5).tolist(), strict=True))
        assert got == pytest.approx(want, abs=1e-5)


def test_weights_without_renormalization_a_scale_and_a_routing_of_ones_own():
    x, logits = inputs()
    plain, scaled = loaded(renormalize=False), loaded(renormalize=False, routed_scaling_factor=2.5)
    torch.testing.assert_close(scaled(x, logits), 2.5 * plain(x, logits), atol=1e-5, rtol=1e-5)

    def always(hidden_states, gating_output, topk, renormalize):
        shape = (len(hidden_states), topk)
        return torch.full(shape, 0.5), torch.tensor([4, 1], dtype=torch.int32).expand(shape)

    forced = torch.full_like(logits, -50.0)
    forced[:, [1, 4]] = 3.0
    own = loaded(custom_routing_function=always)
    torch.testing.assert_close(own(x, logits), by_hand(x, forced, weights()), atol=1e-5, rtol=1e-5)


STREAMS = {
    "one by one": lambda w: per_expert(w),
    "stacked": lambda w: [
        ("experts.gate_proj.weight", w["gate"]), ("experts.up_proj.weight", w["up"]),
        ("experts.down_proj.weight", w["down"]),
    ],
    "gate and up in one": lambda w: [
        ("experts.gate_up_proj.weight", torch.cat((w["gate"], w["up"]), 1)), ("experts.down_proj.weight", w["down"]),
    ],
    "as transformers keeps them": lambda w: [
        ("experts.down_proj", w["down"]), ("experts.gate_up_proj", torch.cat((w["gate"], w["up"]), 1)),
    ],
    "in any order": lambda w: sorted(per_expert(w), key=lambda pair: pair[0][::-1]),
}  # fmt: skip


@pytest.mark.parametrize("naming", STREAMS)
def test_every_naming_loads_the_same_weights(naming):
    x, logits = inputs()
    assert torch.equal(loaded(STREAMS[naming](weights()))(x, logits), loaded()(x, logits))


def test_names_of_the_checkpoint_family():
    x, logits = inputs()
    named = loaded(per_expert(weights(), ("w1", "w2", "w3")), ckpt_names=("w1", "w2", "w3"))
    assert torch.equal(named(x, logits), loaded()(x, logits))
    assert place_of("3.w3.weight_scale", ("w1", "w2", "w3")) == (3, "w13", 1, "weight_scale")
    assert place_of("gate_up_proj") == (None, "w13", None, "weight")
    assert place_of("3.other.weight") is None
    assert place_of("w1.weight") is None


def test_every_tensor_that_does_not_fit_is_listed():
    model = Sparse()
    place(model, None)
    materialize(model, torch.device("cpu"))
    wrong = [
        ("experts.6.gate_proj.weight", torch.zeros(WIDTH, HIDDEN)),
        ("experts.0.gate_proj.weight", torch.zeros(WIDTH + 1, HIDDEN)),
        ("experts.0.extra_proj.weight", torch.zeros(1)),
        ("experts.0.down_proj.bias", torch.zeros(HIDDEN)),
        ("experts.up_proj.weight", torch.zeros(EXPERTS - 1, WIDTH, HIDDEN)),
    ]
    with pytest.raises(WeightsMismatch) as caught:
        AutoWeightsLoader(model).load_weights(wrong)
    text = "\n".join(caught.value.details)
    for name, complaint in {
        "experts.6.gate_proj.weight": "there is no expert 6",
        "experts.0.gate_proj.weight": "expected shape",
        "experts.0.extra_proj.weight": "no parameter of this name",
        "experts.0.down_proj.bias": "experts have no 'bias'",
        "experts.up_proj.weight": "expected 6 experts",
    }.items():
        assert any(line.startswith(name) and complaint in line for line in caught.value.details), text


def test_a_missing_expert_and_a_doubled_one_are_errors():
    stream = [pair for pair in per_expert(weights()) if not pair[0].startswith("experts.4.up")]
    with pytest.raises(WeightsMismatch, match="not loaded completely") as caught:
        loaded(stream)
    assert "experts.w13_weight" in caught.value.details[0]
    again = [*per_expert(weights()), ("experts.4.up_proj.weight", torch.ones(WIDTH, HIDDEN))]
    with pytest.raises(WeightsMismatch):
        loaded(again)


@pytest.mark.parametrize("ranks", [2, 4])
def test_tensor_parallel_slices_sum_to_the_whole(ranks):
    x, logits = inputs()
    parts = []
    for rank in range(ranks):
        with use_groups(tensor=Group(rank, ranks)):
            layer = loaded(reduce_results=False)
        assert layer.w13_weight.shape == (EXPERTS, 2 * WIDTH // ranks, HIDDEN)
        parts.append(layer(x, logits))
    torch.testing.assert_close(sum(parts), loaded()(x, logits), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("naming", ["one by one", "stacked"])
@pytest.mark.parametrize(("ranks", "spare"), [(2, 0), (3, 0), (2, 2), (4, 2)])
def test_expert_parallel_ranks_sum_to_the_whole(ranks, spare, naming):
    x, logits = inputs(30)
    parts = []
    for rank in range(ranks):
        with use_groups(expert=Group(rank, ranks)):
            layer = loaded(STREAMS[naming](weights()), reduce_results=False, num_redundant_experts=spare)
        assert len(layer.w13_weight) == (EXPERTS + spare) // ranks
        parts.append(layer(x, logits))
    torch.testing.assert_close(sum(parts), loaded()(x, logits), atol=1e-5, rtol=1e-5)


def test_copies_share_the_work():
    with use_groups(expert=Group(0, 2)):
        layer = loaded(reduce_results=False, num_redundant_experts=2)
    assert layer.placement.copies()[0] == [0, 6]
    slots = layer._slots(torch.zeros(10, 1, dtype=torch.int64))
    assert slots.flatten().tolist() == [0, -1] * 5
    layer.set_placement(ExpertPlacement(EXPERTS, 2, (5, 5, 5, 4, 3, 2, 1, 0)))
    assert sorted(set(layer._slots(torch.full((9, 1), 5)).flatten().tolist())) == [0, 1, 2]


def test_placements():
    placement = ExpertPlacement.in_order(5, 2, 3)
    assert (placement.num_physical, placement.num_local) == (8, 4)
    assert list(placement.on_rank(1)) == [4, 0, 1, 2]
    with pytest.raises(UsageError, match="cannot be divided among 2 ranks"):
        ExpertPlacement.in_order(5, 2)
    with pytest.raises(UsageError, match="without a place"):
        ExpertPlacement(3, 1, (0, 1, 1))


def test_int8_experts_stay_near_and_the_gate_is_left_alone():
    class Block(Sparse):
        def __init__(self):
            super().__init__()
            self.gate = GateLinear(HIDDEN, EXPERTS, bias=False, params_dtype=torch.float32)

    gate = torch.randn(EXPERTS, HIDDEN)
    model = Block()
    place(model, Int8Config())
    materialize(model, torch.device("cpu"))
    load_complete(model, [*per_expert(weights()), ("gate.weight", gate)])
    finish(model)
    assert model.experts.w13_weight.dtype is torch.int8
    assert model.experts.w13_weight_scale.shape == (EXPERTS, 2 * WIDTH)
    assert torch.equal(model.gate.weight, gate)
    x, logits = inputs()
    whole = loaded()(x, logits)
    assert float((model.experts(x, logits) - whole).abs().max()) < 0.02 * float(whole.abs().max())


@pytest.mark.parametrize("config", [None, Int8Config(), Int4Config(), Fp8AtLoadConfig()])
@pytest.mark.parametrize("activation", ["silu", torch.nn.functional.glu])
def test_experts_of_any_kind_are_one_op(config, activation, monkeypatch):
    """Their tensors stay stacked, whatever a method makes of them, and what moves into a slot is computed with."""
    layer = loaded(
        quant_config=config,
        activation=activation,
        has_bias=activation != "silu",
        stream=with_biases() if activation != "silu" else None,
    )
    x, logits = inputs()
    with torch.inference_mode():
        together = layer(x, logits)
        seen = []
        monkeypatch.setattr(
            grouped_experts, "active", lambda *given: seen.append(given) or grouped_experts.reference(*given)
        )
        assert torch.equal(layer(x, logits), together)
        assert len(seen) == (config is not None or activation != "silu")
        for stack in layer.stacks:
            assert all(len(each) == EXPERTS for each in stack.product.tensors.values())
            stack.product = None
        if activation != "silu" or config is not None:
            torch.testing.assert_close(layer(x, logits), together, rtol=1e-5, atol=1e-6)


def test_what_moves_into_a_slot_is_in_the_product():
    layer = loaded(quant_config=Fp8AtLoadConfig())
    for own, other in zip(layer.expert_tensors(0), layer.expert_tensors(4), strict=True):
        own.copy_(other)
    for stack in layer.stacks:
        for tensor in stack.product.tensors.values():
            assert torch.equal(tensor[0].float(), tensor[4].float())


def test_one_expert_whose_input_is_weighted_is_one_op(monkeypatch):
    x, logits = inputs()
    layer = FusedMoE(
        EXPERTS, 1, HIDDEN, WIDTH, params_dtype=torch.float32, apply_router_weight_on_input=True, renormalize=False
    )
    model = torch.nn.Module()
    model.experts = layer
    place(model, None)
    materialize(model, torch.device("cpu"))
    load_complete(model, per_expert(weights()))
    finish(model)
    together = layer(x, logits)
    monkeypatch.setattr(layer, "_together", lambda *given: None)
    torch.testing.assert_close(layer(x, logits), together, rtol=1e-5, atol=1e-6)


def test_a_row_does_not_depend_on_its_batch_in_deterministic_mode():
    layer = loaded()
    x, logits = inputs(23)
    ops = choose_ops(Target("cpu", torch.float32, deterministic=True), {}, {"linear/fixed_tile": FIXED_TILE})
    with ops.active():
        whole = layer(x, logits)
        alone = torch.cat([layer(x[at : at + 1], logits[at : at + 1]) for at in range(len(x))])
    assert ops.names["linear"] == "fixed_tile"
    assert torch.equal(whole, alone)


def test_bfloat16_sums_in_float32():
    model = FusedMoE(EXPERTS, 2, HIDDEN, WIDTH, params_dtype=torch.bfloat16)
    materialize(model, torch.device("cpu"))
    model.load_weights((name.removeprefix("experts."), tensor) for name, tensor in per_expert(weights()))
    model.finish()
    x, logits = inputs()
    got = model(x.bfloat16(), logits.bfloat16())
    assert got.dtype is torch.bfloat16
    want = loaded()(x, logits.bfloat16().float())
    assert float((got - want).abs().max()) < 0.03 * float(want.abs().max())


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"activation": "tanh"}, "activation"),
        ({"scoring_func": "max"}, "scoring_func"),
        ({"shared_experts": 1}, "shared_experts"),
    ],
)
def test_what_it_does_not_do_is_refused(options, field):
    with pytest.raises(ConfigError) as caught:
        FusedMoE(EXPERTS, 2, HIDDEN, WIDTH, **options)
    assert caught.value.field == field
    with pytest.raises(ConfigError, match="so many experts"):
        FusedMoE(EXPERTS, EXPERTS + 1, HIDDEN, WIDTH)
