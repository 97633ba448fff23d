"""Whole models whose experts move between steps: logits stay, and the busiest rank gets less to do.

The two ranks are threads of this process with real collectives between them.
"""

from __future__ import annotations

import threading
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import transformers

from bestiary.api.errors import UsageError
from bestiary.api.sampling import SamplingParams
from bestiary.engine.arguments import EngineArgs
from bestiary.engine.build import EngineBuilder, bind_attention, target_of, vocab_size
from bestiary.engine.loader.load import build_model, load_model
from bestiary.engine.parallel.eplb import ExpertBalancer, check_eplb
from bestiary.engine.parallel.seat import Seat
from bestiary.engine.plan import NewRequest, ScheduledItem, StepPlan
from bestiary.engine.runner import ModelRunner
from bestiary.nn.moe.balance import imbalance
from bestiary.nn.ops.registry import choose_ops
from bestiary.nn.parallel import Groups, use_groups
from bestiary.nn.parallel.distributed import TorchGroup
from bestiary.nn.placement import finish

PROMPT = (5, 9, 9, 9, 17, 3, 9, 9, 40, 9, 9, 5, 9, 2)
OPTIONS = {
    "skip_tokenizer_init": True, "dtype": "float32", "device": "cpu", "progress": False, "max_model_len": 64,
    "tensor_parallel_size": 2, "enable_expert_parallel": True, "enable_eplb": True,
    "eplb_config": {"num_redundant_experts": 2, "window_size": 4, "step_interval": 2},
}  # fmt: skip
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


class Rank:
    def __init__(self, builder, model_class, config, ops, rank):
        self.group = TorchGroup(rank, 2)
        groups = Groups(tensor=self.group, expert=self.group)
        parallel = replace(config.parallel_config, rank=rank)
        config = replace(config, parallel_config=parallel)
        with use_groups(groups):
            model = build_model(model_class, config)
            bind_attention(model, config, builder.hooks.all("attention_backends"))
            load_model(model, config, builder.description, builder.hooks.all("weight_formats"))
            with ops.active():
                finish(model)
        in_force = SimpleNamespace(active=nullcontext)
        self.runner = ModelRunner(model, config, 8, in_force, vocab_size(model, config), groups)
        self.balancer = ExpertBalancer(model, SimpleNamespace(parallel=parallel, groups=groups, leads=rank == 0))

    def step(self, number):
        """A step that computes the prompt anew."""
        name = str(number)
        item = ScheduledItem(name, 0, len(PROMPT), (0,), samples=True)
        new = NewRequest(name, PROMPT, SamplingParams(prompt_logprobs=0), seed=0)
        self.balancer.begin_step()
        return self.runner.logits(StepPlan(number, (item,), (new,), finished=(str(number - 1),)))


class Ranks:
    def __init__(self, folder, **options):
        builder = EngineBuilder(EngineArgs.make(str(folder), {**OPTIONS, **options}), seat=Seat(rank=0, local_size=2))
        model_class, config = builder.configure()
        offered = builder.hooks.all("op_implementations")
        self.ops = choose_ops(target_of(config), config.op_config.implementations, offered)
        self.ranks = [Rank(builder, model_class, config, self.ops, rank) for rank in (0, 1)]
        store = dist.HashStore()
        self.together(lambda rank: rank.group.connect(store, device="cpu", address="127.0.0.1", timeout=20.0))

    def together(self, work):
        found = {}
        with self.ops.active():
            threads = [
                threading.Thread(target=lambda each=rank: found.update({each: work(each)})) for rank in self.ranks
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(40)
        return [found[rank] for rank in self.ranks]

    def close(self):
        for rank in self.ranks:
            rank.group.close()


@pytest.mark.parametrize(
    ("name", "options"), [("mixtral", {}), ("qwen3_moe", {}), ("qwen3_moe", {"quantization": "int8"})]
)
def test_logits_stay_while_experts_move(name, options, tmp_path, caplog):
    torch.manual_seed(2)
    model = MODELS[name]()
    for param in model.parameters():
        torch.nn.init.normal_(param, std=0.2)
    model.save_pretrained(tmp_path)
    ranks = Ranks(tmp_path, **options)
    balancers = [rank.balancer for rank in ranks.ranks]
    first = [layer.placement for layer in balancers[0].layers]
    before = ranks.together(lambda rank: rank.step(1))[0]
    loads = [layer.load.total().tolist() for layer in balancers[0].layers]
    assert all(sum(each) == 2 * len(PROMPT) for each in loads)
    for number in range(2, 8):
        for logits in ranks.together(lambda rank, at=number: rank.step(at)):
            torch.testing.assert_close(logits, before, atol=1e-5, rtol=1e-5)
    now = [layer.placement for layer in balancers[0].layers]
    assert now == [layer.placement for layer in balancers[1].layers]
    was, become = (sum(map(imbalance, placements, loads)) / len(loads) for placements in (first, now))
    assert become < was - 0.05
    (said,) = [record.message for record in caplog.records if "experts moved" in record.message]
    moved = [index for index, (old, new) in enumerate(zip(first, now, strict=True)) if old != new]
    numbers = [0, 1, 2] if name == "mixtral" else [0, 2]
    assert f"in {len(moved)} of {len(first)} layers ({', '.join(str(numbers[each]) for each in moved)})" in said
    ranks.close()


def test_adapters_and_moving_experts_exclude_each_other():
    config = SimpleNamespace(
        parallel_config=SimpleNamespace(enable_eplb=True),
        model_config=SimpleNamespace(deterministic=False),
        lora_config=SimpleNamespace(max_loras=1),
    )
    with pytest.raises(UsageError, match="adapters were cut"):
        check_eplb(torch.nn.Module(), config)
