"""Recurrences along sequences: pieces against token by token, and the versions whose bits depend on nothing else."""

from functools import partial

import pytest
import torch
from transformers import Mamba2Config
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

from bestiary.nn.ops.by_value import by_value
from bestiary.nn.ops.conv import CONV_BY_TOKEN, causal_conv1d
from bestiary.nn.ops.delta import DELTA_BY_TOKEN, gated_delta_rule
from bestiary.nn.ops.linear import FIXED_TILE
from bestiary.nn.ops.registry import Target, choose_ops
from bestiary.nn.ops.scan import SELECTIVE_BY_TOKEN, SSD_BY_TOKEN, selective_scan, ssd_scan
from bestiary.nn.scope import build_scope
from bestiary.nn.state import MambaMixer2

from .state_steps import loaded, metadata, run

COUNTS = [1, 1, 130, 3]
TOKENS, SEQS = sum(COUNTS), len(COUNTS)
STEP = metadata(COUNTS, [5, 0, 64, 0], [0] * SEQS, [0] * SEQS)


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def delta(width):
    """`width` of the decay: one number a head, or one a channel."""
    decay = -torch.nn.functional.softplus(drawn(TOKENS, 4, width) * 4)
    q, k = unit(drawn(TOKENS, 2, 8)), unit(drawn(TOKENS, 2, 8) + 0.1)
    return q, k, drawn(TOKENS, 4, 6), decay, drawn(TOKENS, 4).sigmoid(), drawn(SEQS, 4, 8, 6), STEP


def ssd():
    decay = -torch.nn.functional.softplus(drawn(TOKENS, 4) * 3)
    return drawn(TOKENS, 4, 6), decay, drawn(TOKENS, 2, 8), drawn(TOKENS, 2, 9)[..., 1:], drawn(SEQS, 4, 6, 8), STEP


def selective():
    dt = torch.nn.functional.softplus(drawn(TOKENS, 12))
    a = -drawn(12, 8).exp()
    return drawn(TOKENS, 12), dt, a, drawn(TOKENS, 8), drawn(TOKENS, 9)[:, 1:], drawn(SEQS, 12, 8), STEP


def conv():
    return drawn(TOKENS, 12), drawn(12, 4), drawn(12), drawn(SEQS, 12, 3), STEP, True


CASES = {
    "causal_conv1d": (causal_conv1d, CONV_BY_TOKEN, conv),
    "selective_scan": (selective_scan, SELECTIVE_BY_TOKEN, selective),
    "ssd_scan": (ssd_scan, SSD_BY_TOKEN, ssd),
    "gated_delta_rule": (gated_delta_rule, DELTA_BY_TOKEN, partial(delta, 1)),
    "gated_delta_rule by channel": (gated_delta_rule, DELTA_BY_TOKEN, partial(delta, 8)),
}


@pytest.mark.parametrize("name", CASES)
def test_pieces_are_token_by_token(name):
    op, by_token, arguments = CASES[name]
    out, after = op.reference(*arguments())
    wanted, state = by_token.function(*arguments())
    torch.testing.assert_close(out, wanted, atol=3e-5, rtol=3e-4)
    torch.testing.assert_close(after, state, atol=3e-5, rtol=3e-4)
    assert out.shape[0] == TOKENS
    assert after.shape[0] == SEQS


def test_token_by_token_is_for_deterministic_mode_alone():
    for deterministic, name in ((False, "reference"), (True, "by_token")):
        chosen = choose_ops(Target("cpu", torch.float32, deterministic), {}, OFFERED)
        assert {chosen.names[op.name] for op, _, _ in CASES.values()} == {name}


OFFERED = {f"{op.name}/by_token": version for op, version, _ in CASES.values()} | {"linear/fixed_tile": FIXED_TILE}


def test_bits_do_not_depend_on_batch_or_pieces(vllm_config):
    torch.manual_seed(0)
    config = Mamba2Config(hidden_size=32, num_heads=8, head_dim=8, state_size=16, n_groups=2, num_hidden_layers=1)
    with build_scope(vllm_config):
        layer = MambaMixer2(32, 16, 4, 64, True, False, 2, 8, 8)
    weights = Mamba2Mixer(config, 0).state_dict().items()
    model = loaded(layer, ((name.replace("A_log", "A"), tensor) for name, tensor in weights))
    inputs = [drawn(length, 32) for length in (19, 7)]
    schedules = (
        [{0: 19}, {1: 7}],
        [{0: 19, 1: 7}],
        [{0: 8, 1: 1}, {0: 1, 1: 5}, {0: 10, 1: 1}],
        [{0: 1, 1: 1}] * 7 + [{0: 1}] * 12,
    )
    chosen = choose_ops(Target("cpu", torch.float32, True), {}, OFFERED)
    with chosen.active(), by_value():
        first, *others = (run(model, layer, inputs, schedule) for schedule in schedules)
    for other in others:
        for ours, theirs in zip(first, other, strict=True):
            assert torch.equal(ours, theirs)
    same = run(model, layer, inputs, schedules[1])
    for ours, theirs in zip(first, same, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=2e-4)
