"""What is planned for every rank is what it holds once it has loaded, to the byte; activations stay below the estimate.

Ranks are threads here, and each loads its part of a real checkpoint.
"""

from importlib import import_module

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from bestiary.api.errors import UsageError
from bestiary.api.sampling import SamplingParams
from bestiary.engine.arguments import EngineArgs
from bestiary.engine.binding import target_of
from bestiary.engine.build import EngineBuilder
from bestiary.engine.memory import num_kv_blocks
from bestiary.engine.memory_plan import plan_memory
from bestiary.engine.model_layers import kv_cache_specs
from bestiary.engine.plan import NewRequest, ScheduledItem, StepPlan
from bestiary.nn import FusedMoE
from bestiary.nn.ops.registry import choose_ops
from bestiary.nn.parallel import use_groups
from bestiary.testing.ranks import BLOCKS, Ranks
from bestiary.testing.workbench import Workbench

SIZES = {"num_hidden_layers": 5, "num_attention_heads": 8, "num_key_value_heads": 2}
SUBJECTS = {
    "Llama": ("llama_plugin", SIZES | {"tie_word_embeddings": True}),
    "Mixtral": ("mixtral_plugin", SIZES | {"num_local_experts": 6}),
    "Qwen3Moe": ("qwen_plugin", SIZES | {"num_experts": 6, "mlp_only_layers": [1]}),
    "Bloom": ("bloom_plugin", {"n_layer": 5, "n_head": 12}),
}
LAYOUTS = {
    "one": {},
    "TP 4": {"tensor_parallel_size": 4},
    "PP 2": {"pipeline_parallel_size": 2, "pipeline_layers": [4, 1]},
    "TP 2, PP 2": {"tensor_parallel_size": 2, "pipeline_parallel_size": 2},
    "EP 2": {
        "tensor_parallel_size": 2, "enable_expert_parallel": True, "eplb_config": {"num_redundant_experts": 4},
    },
}  # fmt: skip
METHODS = ("int8", "int4", "fp8")


@pytest.fixture(scope="module")
def checkpoint():
    """`checkpoint(name)`: a directory with a small model of that kind."""
    made = {}

    def make(name):
        if name not in made:
            package, changed = SUBJECTS[name]
            contract = getattr(import_module(f"{package}.contract"), f"Test{name}")
            config = dict(contract.config) | changed
            made[name] = Workbench(type(name, (contract,), {"__test__": 0, "config": config})())
        return made[name].checkpoint()

    yield make
    for bench in made.values():
        bench.close()


def planned(path, memory=None, **options):
    """The plan, and the configuration it is for."""
    given = {"dtype": "float32", "device": "cpu", "progress": False, **options}
    builder = EngineBuilder(EngineArgs.make(str(path), given), together=False)
    model_class, config = builder.configure()
    ops = choose_ops(target_of(config), {}, builder.hooks.all("op_implementations"))
    with ops.active():
        return plan_memory(model_class, config, memory), config


def held(model):
    """Bytes of all tensors that a model's modules, and its experts' layers, keep in any way; shared ones once."""
    modules = list(model.modules())
    modules += [layer for module in modules if isinstance(module, FusedMoE) for layer in module.expert_layers]
    storages = {}
    for module in modules:
        for values in (module.__dict__, module._parameters, module._buffers):
            for value in values.values():
                if isinstance(value, torch.Tensor):
                    storages[_place(value)] = _size(value)
    return sum(storages.values())


def _place(tensor):
    return id(tensor) if tensor.layout is torch._mkldnn else tensor.untyped_storage().data_ptr()


def _size(tensor):
    packed = tensor.layout is torch._mkldnn  # whose storage cannot be asked
    return tensor.numel() * tensor.element_size() if packed else tensor.untyped_storage().nbytes()


def require_true(path, options):
    plan, _ = planned(path, **options)
    with Ranks(path, **options) as ranks:
        assert [part.ranks for part in plan.parts] == [(rank,) for rank in range(len(ranks.runners))]
        for part, runner in zip(plan.parts, ranks.runners, strict=True):
            assert part.footprint.weight_bytes + part.footprint.buffers == held(runner.model)
            assert part.footprint.parameters == _parameters(part, runner.model, path, options)
            assert part.block_bytes * BLOCKS == sum(each.nbytes for each in runner.kv_caches.values())
            slots = 0 if runner.adapters is None else runner.adapters.slots.nbytes
            assert part.footprint.adapters == slots
            start, end = part.footprint.layers
            assert len(kv_cache_specs(runner.model)) == end - start


def _parameters(part, model, path, options):
    """The model's weights, in whatever form, without scales and zeros."""
    if "quantization" in options:
        plain, _ = planned(path, **{name: value for name, value in options.items() if name != "quantization"})
        return next(each for each in plain.parts if each.ranks == part.ranks).footprint.parameters
    return sum(each.numel() for each in model.parameters()) - part.footprint.repacked // 4


@pytest.mark.parametrize(
    ("name", "layout"),
    [(name, layout) for name in SUBJECTS for layout in LAYOUTS
                         if layout != "EP 2" or name in ("Mixtral", "Qwen3Moe")]
)  # fmt: skip
def test_what_is_planned_is_what_is_held(name, layout, checkpoint):
    require_true(checkpoint(name), LAYOUTS[layout])


@pytest.mark.parametrize("method", METHODS)
def test_quantized_weights(method, checkpoint):
    require_true(checkpoint("Mixtral"), LAYOUTS["EP 2"] | {"quantization": method})


def test_adapters_and_a_cache_of_another_type(checkpoint):
    options = {"tensor_parallel_size": 2, "enable_lora": True, "max_lora_rank": 8, "kv_cache_dtype": "fp8"}
    require_true(checkpoint("Qwen3Moe"), options)
    plan, _ = planned(checkpoint("Llama"), **options)
    assert plan.parts[0].footprint.adapters > 0
    plain, _ = planned(checkpoint("Llama"), tensor_parallel_size=2)
    assert plain.parts[0].block_bytes == 4 * plan.parts[0].block_bytes


def test_copies_of_the_model_hold_the_same(checkpoint):
    plan, _ = planned(checkpoint("Llama"), tensor_parallel_size=2, data_parallel_size=3, num_gpu_blocks_override=100)
    assert [part.ranks for part in plan.parts] == [(0, 2, 4), (1, 3, 5)]
    assert plan.blocks == 100
    assert plan.sequences(100) == 100 // (128 // 16) * 3


def test_the_rank_with_the_least_room_is_told(checkpoint):
    plan, config = planned(
        checkpoint("Llama"), 6 * 2**20, pipeline_parallel_size=2, pipeline_layers=[1, 4], max_num_batched_tokens=64
    )
    assert plan.bottleneck.stage == 1
    for part in plan.parts:
        assert part.left == 6 * 2**20 - part.footprint.held - part.footprint.activations
        assert part.fitting_blocks == part.left // part.block_bytes
        alone = num_kv_blocks(_specs(config, part), config, reserved=0, free=2**40)
        assert part.blocks <= alone
    assert plan.blocks == min(part.blocks for part in plan.parts)


def _specs(config, part):
    class One:
        bytes_per_token = part.footprint.kv_bytes_per_token

    return [One]


def test_weights_that_do_not_fit_leave_less_than_nothing(checkpoint):
    plan, _ = planned(checkpoint("Llama"), 2**16)
    assert plan.bottleneck.left < 0 and plan.bottleneck.fitting_blocks == 0
    assert plan.parts[0].refusal is not None and plan.blocks is None


def test_all_sizes_that_do_not_divide_are_told_at_once(checkpoint):
    with pytest.raises(UsageError) as caught:
        planned(checkpoint("Mixtral"), tensor_parallel_size=3, pipeline_parallel_size=7, enable_expert_parallel=True,
                eplb_config={"num_redundant_experts": 1})  # fmt: skip
    error = caught.value
    text = "\n".join(error.details)
    for part in ("5 layers cannot fill 7", "num_attention_heads = 8", "input_size", "7 experts cannot be divided"):
        assert part in text
    assert error.fix == "pipeline_parallel_size=5 or less; tensor_parallel_size=1 or 2, with num_redundant_experts=0"


def test_one_size_that_does_not_divide_keeps_its_rule(checkpoint):
    with pytest.raises(UsageError, match="6 experts cannot be divided among 4 ranks") as caught:
        planned(checkpoint("Mixtral"), tensor_parallel_size=4, enable_expert_parallel=True)
    assert caught.value.field == "num_redundant_experts"
    assert caught.value.fix == "num_redundant_experts=2; tensor_parallel_size=1 or 2"
    with pytest.raises(UsageError, match="2 sizes do not fit") as caught:
        planned(checkpoint("Bloom"), tensor_parallel_size=8)
    assert caught.value.fix == "tensor_parallel_size=1, 2, 3, 4, 6 or 12"


def test_activations_stay_below_the_estimate(checkpoint):
    """The largest step that was allowed, measured by the allocator; and the estimate is no more than thrice as much."""
    for name, method in (("Llama", None), ("Mixtral", None), ("Qwen3Moe", "int8")):
        limits = {"max_num_batched_tokens": 512, "max_num_seqs": 8, "max_model_len": 64, "quantization": method}
        plan, _ = planned(checkpoint(name), **limits)
        with Ranks(checkpoint(name), **limits) as ranks:
            (runner,) = ranks.runners
            with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as measured:
                batch = runner.prepare(_prefill())
                with use_groups(runner.groups):
                    assert runner.stage.compute(batch).shape == (8, 211)
        most = _peak(measured)
        assert most <= plan.parts[0].footprint.activations <= 3 * most, name


def _prefill():
    """Eight prompts of 64 tokens."""
    items, new = [], []
    for number in range(8):
        ids = tuple((number + 7 * at) % 211 for at in range(64))
        new.append(NewRequest(str(number), ids, SamplingParams(), seed=0))
        items.append(ScheduledItem(str(number), 0, 64, tuple(range(4 * number, 4 * number + 4)), samples=True))
    return StepPlan(0, tuple(items), tuple(new))


def _peak(measured):
    total = most = 0
    for event in measured.profiler.kineto_results.events():
        if event.name() == "[memory]":
            total += event.nbytes()
            most = max(most, total)
    return most
