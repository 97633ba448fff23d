"""FusedMoE: biases, experts without a gate, activations of one's own, weighted inputs, experts that are not there."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bestiary.api.errors import ConfigError, WeightsMismatch
from bestiary.nn import FusedMoE
from bestiary.nn.activation import SwigluOAIAndMul
from bestiary.nn.moe.load import ExpertLoad
from bestiary.nn.moe.names import place_of
from bestiary.nn.ops.moe import topk_routing
from bestiary.nn.parallel import Group, use_groups
from bestiary.nn.placement import finish, materialize, place
from bestiary.nn.weights import load_complete

EXPERTS, HIDDEN, WIDTH, TOP_K = 6, 16, 12, 2
KINDS = {
    "biases": {"has_bias": True},
    "no gate": {"activation": "relu2_no_mul"},
    "no gate, biases": {"activation": "silu_no_mul", "has_bias": True},
    "weighted inputs": {"apply_router_weight_on_input": True, "renormalize": False},
    "clamped": {"activation": lambda x: F.silu(x.chunk(2, -1)[0].clamp(max=0.5)) * x.chunk(2, -1)[1]},
    "scores of another kind": {"scoring_func": "sqrtsoftplus", "routed_scaling_factor": 1.5},
}


class Sparse(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.experts = FusedMoE(EXPERTS, TOP_K, HIDDEN, WIDTH, params_dtype=torch.float32, **options)


def stacks(options):
    """{name below the layer: tensor of all experts}, as a checkpoint has them."""
    generator = torch.Generator().manual_seed(5)
    draw = partial(torch.randn, generator=generator)
    names = ["up_proj", "down_proj"]
    if not str(options.get("activation")).endswith("_no_mul"):
        names.insert(0, "gate_proj")
    made = {}
    for name in names:
        shape = (HIDDEN, WIDTH) if name == "down_proj" else (WIDTH, HIDDEN)
        made[f"{name}.weight"] = draw(EXPERTS, *shape) * 0.4
        if options.get("has_bias"):
            made[f"{name}.bias"] = draw(EXPERTS, shape[0])
    return made


def loaded(options, **more):
    model = Sparse(**options, **more)
    place(model, None)
    materialize(model, torch.device("cpu"))
    tensors = stacks(options)
    load_complete(model, [(f"experts.{e}.{name}", each[e]) for name, each in tensors.items() for e in range(EXPERTS)])
    finish(model)
    return model.experts


def inputs(tokens=11):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(tokens, HIDDEN, generator=generator), torch.randn(tokens, EXPERTS, generator=generator) * 2


def by_hand(options, x, logits):
    """The definition, token by token."""
    held = stacks(options)
    scores = F.softplus(logits).sqrt() if options.get("scoring_func") == "sqrtsoftplus" else logits.softmax(-1)
    best = scores.topk(TOP_K)
    shares = best.values
    if options.get("renormalize", True):
        shares = shares / shares.sum(-1, keepdim=True)
    shares = shares * options.get("routed_scaling_factor", 1.0)
    activation = options.get("activation", "silu")
    rows = []
    for row, token_shares, ids in zip(x, shares, best.indices, strict=True):
        total = torch.zeros(HIDDEN)
        for share, expert in zip(token_shares, ids, strict=True):

            def project(name, of, expert=expert):
                bias = held.get(f"{name}.bias")
                return F.linear(of, held[f"{name}.weight"][expert], None if bias is None else bias[expert])

            given = row * share if options.get("apply_router_weight_on_input") else row
            up = project("up_proj", given)
            if activation == "relu2_no_mul":
                inner = F.relu(up).square()
            elif activation == "silu_no_mul":
                inner = F.silu(up)
            elif callable(activation):
                inner = activation(torch.cat((project("gate_proj", given), up)))
            else:
                inner = F.silu(project("gate_proj", given)) * up
            output = project("down_proj", inner)
            total += output if options.get("apply_router_weight_on_input") else output * share
        rows.append(total)
    return torch.stack(rows)


@pytest.mark.parametrize("kind", KINDS)
def test_the_layer_is_its_definition(kind):
    x, logits = inputs()
    got = loaded(KINDS[kind])(x, logits)
    torch.testing.assert_close(got, by_hand(KINDS[kind], x, logits), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("among", ["tensor", "expert"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_ranks_make_sums_to_the_whole(kind, among):
    x, logits = inputs()
    parts = []
    for rank in range(2):
        with use_groups(**{among: Group(rank, 2)}):
            parts.append(loaded(KINDS[kind], reduce_results=False)(x, logits))
    torch.testing.assert_close(sum(parts), loaded(KINDS[kind])(x, logits), atol=1e-4, rtol=1e-4)


def test_an_activation_of_ones_own_sees_gates_before_ups():
    seen = []

    def activation(x):
        seen.append(x)
        return x.chunk(2, -1)[0]

    x, logits = inputs(1)
    loaded({"activation": activation})(x, logits)
    expert = int(logits.argmax())
    gates = F.linear(x, stacks({})["gate_proj.weight"][expert])
    assert any(torch.allclose(each[..., :WIDTH], gates, atol=1e-5) for each in seen)


def test_interleaved_gates_and_ups_stay_as_they_are_stored():
    """gpt-oss's: both projections in one tensor, row about."""
    layer = loaded({"activation": SwigluOAIAndMul(1.702, 7.0)})
    gates, ups = torch.randn(EXPERTS, WIDTH, HIDDEN), torch.randn(EXPERTS, WIDTH, HIDDEN)
    layer.w13_weight.data.copy_(torch.stack((gates, ups), 2).flatten(1, 2))
    x, logits = inputs(3)
    weights, ids = topk_routing(logits, TOP_K, True)
    want = torch.zeros_like(x)
    for token in range(3):
        for share, expert in zip(weights[token], ids[token], strict=True):
            gate, up = gates[expert] @ x[token], ups[expert] @ x[token]
            gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0)
            inner = (up + 1) * gate * torch.sigmoid(1.702 * gate)
            want[token] += share * (layer.w2_weight[expert] @ inner)
    torch.testing.assert_close(layer(x, logits), want, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("ranks", "spare"), [(1, 0), (2, 2)])
def test_a_token_may_have_fewer_experts(ranks, spare):
    x, logits = inputs()
    weights, ids = topk_routing(logits, TOP_K, False)
    first = torch.cat((ids[:, :1], torch.full_like(ids[:, :1], -1)), 1)
    want = loaded({}).combine(x, weights[:, :1], ids[:, :1])
    parts = []
    for rank in range(ranks):
        with use_groups(**({"expert": Group(rank, ranks)} if ranks > 1 else {})):
            layer = loaded({}, num_redundant_experts=spare)
        layer.load = ExpertLoad(EXPERTS, 2, torch.device("cpu"))
        parts.append(layer.combine(x, weights, first))
        assert layer.load.total().tolist() == torch.bincount(ids[:, 0], minlength=EXPERTS).tolist()
    torch.testing.assert_close(sum(parts), want, atol=1e-5, rtol=1e-5)


def test_experts_without_a_gate_have_no_gate_projection():
    assert place_of("3.up_proj.weight", gated=False) == (3, "w13", None, "weight")
    assert place_of("3.gate_proj.weight", gated=False) is None
    model = Sparse(activation="relu2_no_mul")
    place(model, None)
    materialize(model, torch.device("cpu"))
    with pytest.raises(WeightsMismatch) as caught:
        model.experts.load_weights([("0.gate_proj.weight", torch.zeros(WIDTH, HIDDEN))])
    assert "no parameter of this name" in caught.value.details[0]


@pytest.mark.parametrize("option", ["zero_expert_type", "swiglu_limit", "hash_indices_table"])
def test_what_belongs_around_the_layer_is_refused(option):
    with pytest.raises(ConfigError) as caught:
        FusedMoE(EXPERTS, TOP_K, HIDDEN, WIDTH, **{option: 1.0})
    assert caught.value.field == option
