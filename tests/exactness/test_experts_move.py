"""Whole models whose experts move between steps: logits stay, and the busiest rank gets less to do."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import transformers

from bestiary.api.config import EPLBConfig, ParallelConfig
from bestiary.engine.parallel.eplb import ExpertBalancer
from bestiary.nn.moe.balance import imbalance
from bestiary.testing.ranks import Ranks

PROMPT = (5, 9, 9, 9, 17, 3, 9, 9, 40, 9, 9, 5, 9, 2)
EPLB = {"num_redundant_experts": 2, "window_size": 4, "step_interval": 2}
EXPERTS = {"tensor_parallel_size": 2, "enable_expert_parallel": True, "enable_eplb": True}
SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 83, "max_position_embeddings": 64, "num_experts_per_tok": 2,
}  # fmt: skip
MODELS = {
    "mixtral": lambda: transformers.MixtralForCausalLM(transformers.MixtralConfig(**SIZES, num_local_experts=6)),
    "qwen3_moe": lambda: transformers.Qwen3MoeForCausalLM(
        transformers.Qwen3MoeConfig(**SIZES, head_dim=8, num_experts=8, moe_intermediate_size=24, mlp_only_layers=[1])
    ),
}


def balancers_of(ranks):
    parallel = ParallelConfig(**EXPERTS, eplb_config=EPLBConfig(**EPLB))
    return [
        ExpertBalancer(runner.model, SimpleNamespace(parallel=parallel, groups=runner.groups, leads=rank == 0))
        for rank, runner in enumerate(ranks.runners)
    ]


@pytest.mark.parametrize(
    ("name", "options"), [("mixtral", {}), ("qwen3_moe", {}), ("qwen3_moe", {"quantization": "int8"})]
)
def test_logits_stay_while_experts_move(name, options, tmp_path, caplog):
    torch.manual_seed(2)
    model = MODELS[name]()
    for param in model.parameters():
        torch.nn.init.normal_(param, std=0.2)
    model.save_pretrained(tmp_path)
    with Ranks(tmp_path, **EXPERTS, eplb_config=EPLB, **options) as ranks:
        balancers = balancers_of(ranks)

        def step():
            ranks.together(lambda runner, rank: balancers[rank].begin_step())
            return ranks.prompt_logits(PROMPT)

        layers = balancers[0].layers
        first, before = [layer.placement for layer in layers], step()
        loads = [layer.load.total().tolist() for layer in layers]
        assert all(sum(each) == 2 * len(PROMPT) for each in loads)
        for _ in range(6):
            torch.testing.assert_close(step(), before, atol=1e-5, rtol=1e-5)
        now = [layer.placement for layer in layers]
        assert now == [layer.placement for layer in balancers[1].layers]
    was, become = (sum(map(imbalance, placements, loads)) / len(loads) for placements in (first, now))
    assert become < was - 0.05
    (said,) = [record.message for record in caplog.records if "experts moved" in record.message]
    numbers = ["0", "1", "2"] if name == "mixtral" else ["0", "2"]
    moved = [number for number, old, new in zip(numbers, first, now, strict=True) if old != new]
    assert f"in {len(moved)} of {len(first)} layers ({', '.join(moved)})" in said
