"""Layers with a state, each against transformers' module of it: whole prompts, pieces, tokens, batches, ranks."""

import threading
from functools import partial

import pytest
import torch
from transformers import (
    FalconMambaConfig,
    JambaConfig,
    KimiLinearConfig,
    Lfm2Config,
    Mamba2Config,
    MambaConfig,
    MiniMaxConfig,
    OlmoHybridConfig,
    Qwen3_5TextConfig,
    Qwen3NextConfig,
)
from transformers.models.falcon_mamba.modeling_falcon_mamba import FalconMambaMixer
from transformers.models.jamba.modeling_jamba import JambaMambaMixer
from transformers.models.kimi_linear.modeling_kimi_linear import KimiLinearDeltaAttention
from transformers.models.lfm2.modeling_lfm2 import Lfm2ShortConv
from transformers.models.mamba.modeling_mamba import MambaMixer as TheirMamba
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer
from transformers.models.minimax.modeling_minimax import MiniMaxLightningAttention
from transformers.models.olmo_hybrid.modeling_olmo_hybrid import OlmoHybridGatedDeltaNet
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5GatedDeltaNet
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

from bestiary.api.errors import ConfigError, EngineError, UsageError
from bestiary.nn import WeightsMapper
from bestiary.nn.parallel import Group, use_groups
from bestiary.nn.scope import build_scope
from bestiary.nn.state import (
    BailingMoELinearAttention,
    CausalConv1d,
    GatedDeltaNetAttention,
    KimiDeltaAttention,
    LightningAttention,
    MambaMixer,
    MambaMixer2,
    Mixer2RMSNormGated,
    OlmoHybridGatedDeltaNetAttention,
    RMSNormGated,
    ShortConv,
)

from .state_steps import loaded, run

HIDDEN, LAYERS = 32, ["linear_attention", "full_attention"]
HEADS = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 12}
DELTA = dict(zip(("num_k_heads", "num_v_heads", "head_k_dim", "head_v_dim"), HEADS.values(), strict=True))
MAMBA = {"hidden_size": HIDDEN, "intermediate_size": 64, "state_size": 8, "time_step_rank": 4, "num_hidden_layers": 1}
RENAMED = WeightsMapper(orig_to_new_substr={"A_log": "A"})
QWEN3_5 = WeightsMapper(
    orig_to_new_stacked={
        "in_proj_qkv.": ("in_proj_qkvz.", (0, 1, 2)),
        "in_proj_z.": ("in_proj_qkvz.", 3),
        "in_proj_b.": ("in_proj_ba.", 0),
        "in_proj_a.": ("in_proj_ba.", 1),
    }
)
AS_THEIRS = WeightsMapper()


def mamba(theirs, **options):
    return theirs, partial(MambaMixer, HIDDEN, 8, 4, 64, 4, True, False, **options), RENAMED


def mamba_layer():
    return mamba(TheirMamba(MambaConfig(**MAMBA), 0))


def falcon_mamba():
    config = FalconMambaConfig(**MAMBA, mixer_rms_eps=1e-4)
    return mamba(
        FalconMambaMixer(config, 0, initialize_mixer_weights=False),
        use_rms_norm=True,
        rms_norm_has_weight=False,
        rms_norm_eps=1e-4,
    )


def jamba():
    config = JambaConfig(hidden_size=HIDDEN, mamba_d_state=8, mamba_dt_rank=4, num_hidden_layers=1, attn_layer_offset=2)
    return mamba(JambaMambaMixer(config, 0), use_rms_norm=True, rms_norm_eps=config.rms_norm_eps)


def mamba2(groups=2, **options):
    config = Mamba2Config(
        hidden_size=HIDDEN, num_heads=8, head_dim=8, state_size=16, n_groups=groups, num_hidden_layers=1,
        chunk_size=16, **options,
    )  # fmt: skip
    limit = options.get("time_step_limit", (0.0, float("inf")))
    ours = partial(MambaMixer2, HIDDEN, 16, 4, 64, True, False, groups, 8, 8, time_step_limit=limit)
    return Mamba2Mixer(config, 0), ours, RENAMED


def mamba2_one_group():
    return mamba2(1, time_step_limit=(0.01, 0.05))


def qwen3_next():
    config = Qwen3NextConfig(hidden_size=HIDDEN, layer_types=LAYERS, num_hidden_layers=2, **HEADS)
    ours = partial(GatedDeltaNetAttention, HIDDEN, *DELTA.values(), 4, gqa_interleaved_layout=True)
    return Qwen3NextGatedDeltaNet(config, 0), ours, AS_THEIRS


def qwen3_5():
    config = Qwen3_5TextConfig(hidden_size=HIDDEN, layer_types=LAYERS, num_hidden_layers=2, **HEADS)

    return Qwen3_5GatedDeltaNet(config, 0), partial(GatedDeltaNetAttention, HIDDEN, *DELTA.values(), 4), QWEN3_5


def olmo_hybrid():
    config = OlmoHybridConfig(
        hidden_size=HIDDEN, layer_types=LAYERS, num_hidden_layers=2, linear_allow_neg_eigval=True, **HEADS
    )
    ours = partial(OlmoHybridGatedDeltaNetAttention, HIDDEN, *DELTA.values(), 4, allow_neg_eigval=True)
    return OlmoHybridGatedDeltaNet(config, 0), ours, AS_THEIRS


def lfm2():
    config = Lfm2Config(hidden_size=HIDDEN, conv_L_cache=3, conv_bias=True, num_hidden_layers=1, layer_types=["conv"])
    return Lfm2ShortConv(config, 0), partial(ShortConv, HIDDEN, 3, True), AS_THEIRS


class ByHeads(torch.nn.Module):
    """transformers' module, called as the others are."""

    def __init__(self, theirs):
        super().__init__()
        self.theirs = theirs

    def forward(self, hidden):
        return self.theirs(hidden, None, None)[0]

    def state_dict(self):
        names = ("qkv_proj.weight", "output_gate.weight", "norm.weight", "out_proj.weight")
        return {name: self.theirs.state_dict()[name] for name in names}


def minimax():
    config = MiniMaxConfig(
        hidden_size=HIDDEN, num_attention_heads=4, head_dim=8, num_hidden_layers=6, hidden_act="silu", block_size=16
    )
    theirs = MiniMaxLightningAttention(config, 2)
    return ByHeads(theirs), partial(LightningAttention, HIDDEN, 4, 8, 2, 6, eps=theirs.norm.variance_epsilon), AS_THEIRS


def kimi():
    config = KimiLinearConfig(
        hidden_size=HIDDEN, linear_num_heads=4, linear_head_dim=8, linear_conv_kernel_dim=4,
        layer_types=LAYERS, num_hidden_layers=2, rms_norm_eps=1e-5,
    )  # fmt: skip
    ours = partial(KimiDeltaAttention, HIDDEN, 4, 8, 4, rms_norm_eps=1e-5)
    return KimiLinearDeltaAttention(config, 0), ours, WeightsMapper(orig_to_new_substr={"forget_gate.": ""})


KINDS = [
    mamba_layer,
    falcon_mamba,
    jamba,
    mamba2,
    mamba2_one_group,
    qwen3_next,
    qwen3_5,
    olmo_hybrid,
    lfm2,
    minimax,
    kimi,
]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


def made(vllm_config, kind):
    """transformers' module of random weights, and what makes a model of ours with them."""
    torch.manual_seed(0)
    theirs, ours, mapper = kind()
    for param in theirs.parameters():
        torch.nn.init.normal_(param, std=0.3)
    building = threading.Lock()

    def build():
        with building, build_scope(vllm_config):
            layer = ours()
        return loaded(layer, theirs.state_dict().items(), mapper)

    return theirs.eval(), build


def prompts(*lengths):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(length, HIDDEN, generator=generator) for length in lengths]


def expected(theirs, inputs):
    with torch.inference_mode():
        return [theirs(each.unsqueeze(0))[0] for each in inputs]


def whole(lengths):
    return [dict(enumerate(lengths))]


def one_by_one(lengths):
    return [{seq: 1 for seq, length in enumerate(lengths) if length > at} for at in range(max(lengths))]


def in_pieces(lengths, piece=7):
    """Pieces of one prompt beside single tokens of others, which come and go."""
    left, steps = list(lengths), []
    while any(left):
        step = {seq: min(left[seq], 1 if (seq + len(steps)) % 3 else piece) for seq in range(len(left)) if left[seq]}
        left = [rest - step.get(seq, 0) for seq, rest in enumerate(left)]
        steps.append(step)
    return steps


def same(ours, theirs):
    for found, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, wanted, atol=2e-5, rtol=2e-4)


@every_kind
@pytest.mark.parametrize("schedule", [whole, one_by_one, in_pieces])
def test_equals_transformers(vllm_config, kind, schedule):
    theirs, ours = made(vllm_config, kind)
    lengths = (23, 1, 150, 9) if schedule is whole else (23, 1, 40, 9)
    inputs = prompts(*lengths)
    model = ours()
    same(run(model, model[0], inputs, schedule(lengths)), expected(theirs, inputs))


class Meeting(Group):
    """A rank that is a thread: it meets the others at a barrier, and sees what each brought."""

    def __init__(self, rank, size, barrier, brought):
        super().__init__(rank, size)
        self.barrier, self.brought = barrier, brought

    def _all(self, tensor):
        self.barrier.wait(60)
        self.brought[self.rank] = tensor
        self.barrier.wait(60)
        return list(self.brought)

    def all_reduce(self, tensor):
        return sum(self._all(tensor))

    def all_gather(self, tensor, dim=-1):
        return torch.cat(self._all(tensor), dim)


def on_ranks(size, work):
    barrier, brought, results = threading.Barrier(size), [None] * size, [None] * size

    def rank(index):
        with use_groups(tensor=Meeting(index, size, barrier, brought)):
            results[index] = work()

    threads = [threading.Thread(target=rank, args=(index,)) for index in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return results


@every_kind
@pytest.mark.parametrize("ranks", [2])
def test_ranks_compute_what_one_does(vllm_config, kind, ranks):
    theirs, ours = made(vllm_config, kind)
    inputs = prompts(20, 5)

    def work():
        model = ours()
        return run(model, model[0], inputs, in_pieces((20, 5)))

    for found in on_ranks(ranks, work):
        same(found, expected(theirs, inputs))


def test_more_ranks_than_groups_copy_them(vllm_config):
    theirs, ours = made(vllm_config, mamba2)
    inputs = prompts(12)

    def work():
        model = ours()
        return model[0].get_state_spec().shapes, run(model, model[0], inputs, whole((12,)))

    for shapes, found in on_ranks(4, work):
        assert shapes == ((16 + 2 * 16, 3), (2, 8, 16))
        same(found, expected(theirs, inputs))


def test_groups_that_ranks_cannot_share_are_refused(scope):
    with use_groups(tensor=Group(0, 3)), pytest.raises(UsageError) as raised:
        MambaMixer2(HIDDEN, 16, 4, 72, True, False, 2, 9, 8)
    assert raised.value.field == "n_groups"


def test_a_row_of_a_batch_does_not_depend_on_the_others(vllm_config):
    _, ours = made(vllm_config, mamba2)
    model = ours()
    inputs = prompts(30, 11)
    alone = run(model, model[0], inputs[:1], in_pieces((30,)))
    together = run(model, model[0], inputs, [{0: part[0], **rest} for part, rest in zip(
        in_pieces((30,)), [{1: 11}] + [{}] * 30, strict=False)])  # fmt: skip
    torch.testing.assert_close(alone[0], together[0], atol=1e-6, rtol=1e-5)


def test_strong_decay_and_long_prompts_stay_finite(vllm_config):
    theirs, ours = made(vllm_config, qwen3_next)
    theirs.A_log.data.fill_(4.0)
    inputs = prompts(300)
    model = ours()
    (found,) = run(model, model[0], inputs, whole((300,)))
    assert found.isfinite().all()
    same([found], expected(theirs, inputs))
    same(run(model, model[0], inputs, in_pieces((300,), 90)), [found])


def test_states_are_asked_of_the_layer(scope):
    spec = MambaMixer2(HIDDEN, 16, 4, 64, True, False, 2, 8, 8).get_state_spec()
    assert spec.shapes == ((64 + 2 * 32, 3), (8, 8, 16))
    assert spec.bytes_per_row == 4 * (128 * 3 + 8 * 8 * 16)


def test_half_precision_keeps_the_recurrent_state_whole(vllm_config):
    from dataclasses import replace

    config = replace(vllm_config, model_config=replace(vllm_config.model_config, dtype=torch.bfloat16))
    with build_scope(config):
        layer = MambaMixer(HIDDEN, 8, 4, 64, 4, True, False)
    assert layer.get_state_spec().dtypes == (torch.bfloat16, torch.float32)
    assert layer.A.dtype is torch.float32 and layer.D.dtype is torch.bfloat16


def test_rates_may_have_a_bound(vllm_config):
    with build_scope(vllm_config):
        layer = KimiDeltaAttention(HIDDEN, 2, 4, 4, gate_lower_bound=-5.0)
    weights = [(name, torch.full(param.shape, 0.5)) for name, param in layer.named_parameters()]
    loaded(layer, weights)
    rates = torch.linspace(-9, 9, 24).view(3, 2, 4)
    torch.testing.assert_close(layer._decay(rates), -5 * torch.sigmoid(rates * torch.tensor(0.5).exp()))


@pytest.mark.parametrize("before", [True, False])
def test_a_gate_before_or_after_the_norm(scope, before):
    norm = RMSNormGated(8, 1e-5, group_size=4, norm_before_gate=before, activation="sigmoid")
    model = loaded(norm, [("weight", torch.arange(8.0))])
    x, gate = torch.randn(2, 3, 8)
    shown = x if before else x * gate.sigmoid()
    means = shown.view(3, 2, 4).square().mean(-1, keepdim=True)
    wanted = (shown.view(3, 2, 4) * (means + 1e-5).rsqrt()).view(3, 8) * torch.arange(8.0)
    torch.testing.assert_close(model[0](x, gate), wanted * gate.sigmoid() if before else wanted)


def test_a_mixer_without_norm_only_has_the_gate(scope):
    norm = Mixer2RMSNormGated(8, 2, use_rms_norm=False)
    x, gate = torch.randn(2, 3, 8)
    assert not list(norm.parameters())
    torch.testing.assert_close(norm(x, gate), x * torch.nn.functional.silu(gate))


def test_what_no_layer_does_is_refused(scope):
    with pytest.raises(ConfigError) as raised:
        CausalConv1d([8], 4, True, "gelu")
    assert raised.value.field == "activation"
    with pytest.raises(ConfigError) as raised:
        RMSNormGated(8, activation="relu")
    assert raised.value.field == "activation"


def test_a_step_that_says_nothing_of_states_is_an_error(scope):
    from bestiary.nn.context import ForwardContext, forward_context

    from .state_steps import metadata

    layer = ShortConv(HIDDEN, 3, False)
    with forward_context(ForwardContext(metadata([1], [0], [-1], [0]), {})), pytest.raises(EngineError, match="state"):
        layer.read_states()


def bailing(groups):
    return BailingMoELinearAttention(
        HIDDEN, 6, 8, 1, 4, max_position=128, rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        group_norm_size=groups, use_qk_norm=True,
    )  # fmt: skip


def by_definition(layer, x):
    """Ling's linear attention, token by token, as its formula says."""
    q, k, v = layer.query_key_value(x).view(-1, 3, 6, 8).unbind(1)
    q, k = (torch.nn.functional.rms_norm(each, (8,), norm.weight, 1e-5) for each, norm in (
        (q, layer.query_layernorm), (k, layer.key_layernorm)))  # fmt: skip
    q, k = layer.rotary_emb(torch.arange(len(x)), q.flatten(1), k.flatten(1))
    q, k = (each.view(-1, 6, 8) for each in (q, k))
    fade = torch.tensor([0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125]) * (1 - 1 / 3 + 1e-5)
    state, out = torch.zeros(6, 8, 8), []
    for at in range(len(x)):
        state = state * (-fade).exp()[:, None, None] + k[at, :, :, None] * v[at, :, None, :]
        out.append((q[at, :, :, None] * 8**-0.5 * state).sum(1))
    groups = torch.stack(out).flatten(1).view(len(x), 48 // layer.g_norm.group_size, -1)
    normed = torch.nn.functional.rms_norm(groups, groups.shape[-1:], None, 1e-5).flatten(1) * layer.g_norm.weight
    return layer.dense(normed * layer.g_proj(x).sigmoid())


@pytest.mark.parametrize("groups", [1, 2])
def test_fading_linear_attention_is_its_formula(vllm_config, groups):
    torch.manual_seed(0)
    with build_scope(vllm_config):
        layer = bailing(groups)
    weights = [(name, torch.randn(param.shape) * 0.3) for name, param in layer.named_parameters()]
    model = loaded(layer, weights)
    (x,) = prompts(60)

    class Positioned(torch.nn.Module):
        at = 0

        def forward(self, hidden):
            self.at += len(hidden)
            return model[0](hidden, torch.arange(self.at - len(hidden), self.at))

    (found,) = run(Positioned(), layer, [x], in_pieces((60,), 33))
    with torch.inference_mode():
        torch.testing.assert_close(found, by_definition(layer, x), atol=2e-5, rtol=2e-4)
