"""Every architecture of ours divided among ranks answers as one process does: logits within 1e-4, greedy tokens equal.

Beyond what its contract checks: five layers, which no number of stages divides, more ranks than key-value heads, a
vocabulary that nothing divides, and sequences of several lengths in one batch.
"""

import threading
from importlib import import_module

import pytest
import torch

from bestiary.api.errors import EngineError, UsageError
from bestiary.api.sampling import SamplingParams
from bestiary.engine.plan import NewRequest, ScheduledItem, StepPlan
from bestiary.nn.parallel import get_pp_group
from bestiary.testing.ranks import Ranks
from bestiary.testing.workbench import Workbench

ATOL = 1e-4
TOKENS = 5
BLOCKS = 2  # a sequence
SIZES = {"num_hidden_layers": 5, "num_attention_heads": 8, "num_key_value_heads": 2}
SUBJECTS = {
    "llama_plugin.contract": dict.fromkeys(("TestLlama", "TestMistral", "TestPhi3"), SIZES),
    "mixtral_plugin.contract": {"TestMixtral": SIZES | {"num_local_experts": 6}},
    "bloom_plugin.contract": {"TestBloom": {"n_layer": 5, "n_head": 12}},
    "qwen_plugin.contract": {
        "TestQWen": {"num_hidden_layers": 5},
        "TestQwen2": SIZES,
        "TestQwen3": SIZES,
        "TestQwen2Moe": SIZES | {"num_experts": 6},
        "TestQwen3Moe": SIZES | {"num_experts": 6, "num_key_value_heads": 1},
    },
}
NAMES = [(module, name) for module, names in SUBJECTS.items() for name in names]
SAME_FILE = {"TestMistral", "TestPhi3"}
"""Of the same model file as another: they have one layout by default, and the others by hand."""
EXPERTS = {"tensor_parallel_size": 2, "enable_expert_parallel": True}
LAYOUTS = {
    "TP 4": {"tensor_parallel_size": 4},
    "PP 4": {"pipeline_parallel_size": 4},
    "TP 2, PP 2": {"tensor_parallel_size": 2, "pipeline_parallel_size": 2, "pipeline_layers": [4, 1]},
    "EP 2": EXPERTS | {"eplb_config": {"num_redundant_experts": 4}},
}
MORE = {
    "TP 2": {"tensor_parallel_size": 2},
    "PP 2": {"pipeline_parallel_size": 2},
    "PP 5": {"pipeline_parallel_size": 5},
    "EP 4, PP 2": {**EXPERTS, "tensor_parallel_size": 4, "pipeline_parallel_size": 2,
                   "eplb_config": {"num_redundant_experts": 2}},
    "int8, TP 2": {"tensor_parallel_size": 2, "quantization": "int8"},
}  # fmt: skip


@pytest.fixture(scope="module")
def subject():
    """`subject(module, name)`: the checkpoint of a contract's model in these sizes, and one process's answers."""
    made = {}

    def make(module, name):
        if (module, name) not in made:
            contract = getattr(import_module(module), name)
            config = dict(contract.config) | SUBJECTS[module][name]
            bench = Workbench(type(name, (contract,), {"__test__": 0, "architecture": contract.architecture,
                                                       "config": config})())  # fmt: skip
            made[module, name] = bench, {}
        return made[module, name]

    yield make
    for bench, _ in made.values():
        bench.close()


def prompts():
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(0, 211, (length,), generator=generator).tolist() for length in (1, 6, 19)]


def plan(step, spans, new=()):
    """`spans`: for each sequence, from where to where, and whether a token is drawn."""
    items = []
    for number, (start, end) in enumerate(spans):
        blocks = tuple(range(number * BLOCKS, (number + 1) * BLOCKS))
        items.append(ScheduledItem(str(number), start, end - start, blocks, samples=True))
    return StepPlan(step, tuple(items), tuple(new))


def answers(ranks):
    """Logits of every position of all prompts, and the tokens drawn after them."""
    sampling = SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True, prompt_logprobs=0)
    new = [NewRequest(str(number), tuple(ids), sampling, seed=0) for number, ids in enumerate(prompts())]
    ends = [len(ids) for ids in prompts()]
    first = plan(0, [(0, end) for end in ends], new)
    logits, drawn = ranks.logits(first), [ranks.execute(first).sampled]
    for step in range(1, TOKENS):
        drawn.append(ranks.execute(plan(step, [(end + step - 1, end + step) for end in ends])).sampled)
    return logits, [[each[str(number)].token_id for each in drawn] for number in range(len(ends))]


def compare(subject, module, name, options):
    bench, known = subject(module, name)
    quantization = options.get("quantization")
    if quantization not in known:
        with Ranks(bench.checkpoint(), quantization=quantization) as alone:
            known[quantization] = answers(alone)
    want, tokens = known[quantization]
    with Ranks(bench.checkpoint(), **options) as ranks:
        logits, drawn = answers(ranks)
    torch.testing.assert_close(logits, want, atol=ATOL, rtol=0)
    assert drawn == tokens


def cases():
    for module, name in NAMES:
        for layout in LAYOUTS | MORE:
            if "EP" not in layout or name.endswith(("Moe", "Mixtral")):
                by_hand = layout in MORE or (name in SAME_FILE and layout != "TP 2, PP 2")
                yield pytest.param(module, name, layout, id=f"{name[4:]}, {layout}", marks=[pytest.mark.full] * by_hand)


@pytest.mark.parametrize(("module", "name", "layout"), list(cases()))
def test_ranks_answer_as_one_process(module, name, layout, subject):
    compare(subject, module, name, (LAYOUTS | MORE)[layout])


def checkpoint(subject):
    return subject("llama_plugin.contract", "TestLlama")[0].checkpoint()


def test_a_rank_that_fails_ends_the_wait_of_the_others(subject):
    with Ranks(checkpoint(subject), tensor_parallel_size=4) as ranks:

        def forward(**_):
            raise ValueError("of its own")

        ranks.runners[2].model.forward = forward
        with pytest.raises(ValueError, match="of its own") as caught:
            ranks.prompt_logits([1, 2, 3])
        assert caught.value.__notes__ == ["on rank 2; ranks that failed by themselves: [2]"]
        assert threading.active_count() < 10


def test_ranks_that_wait_for_each_other_give_up(subject):
    with Ranks(checkpoint(subject), tensor_parallel_size=2, patience=0.5) as ranks:
        norm = ranks.runners[1].model.model.norm
        norm.forward = lambda hidden, residual: (get_tp_sum(hidden), residual)
        with pytest.raises(EngineError, match="waits for another") as caught:
            ranks.prompt_logits([1, 2, 3])
        assert caught.value.error_code == "RANK_STALLED"


def get_tp_sum(hidden):
    """A sum that the other rank does not make, since it goes on to the logits."""
    from bestiary.nn.parallel import tensor_model_parallel_all_reduce

    for _ in range(3):
        hidden = tensor_model_parallel_all_reduce(hidden)
    return hidden


def test_groups_are_those_of_each_thread(subject):
    with Ranks(checkpoint(subject), pipeline_parallel_size=2) as ranks:
        ranks.prompt_logits([1, 2, 3])
        assert get_pp_group().world_size == 1


def test_sizes_that_do_not_divide_are_refused(subject):
    with pytest.raises(UsageError, match="cannot be divided among 3"):
        Ranks(checkpoint(subject), tensor_parallel_size=3)
