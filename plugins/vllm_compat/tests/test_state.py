"""Models with states: Mamba, Mamba 2, LFM2, Qwen3-Next, as files for vLLM have them, through the engine."""

import pytest
import torch
from corpus_check import SIZES, check_equal, model_class

from bestiary import SamplingParams
from bestiary.testing.logits import prompt_logits
from bestiary_vllm.changeable import changeable

GREEDY = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
MAMBA = {"hidden_size": 64, "state_size": 8, "num_hidden_layers": 2, "vocab_size": 211, "expand": 2}
DELTA = {
    "head_dim": 16, "mlp_only_layers": [0, 1, 2], "num_experts": 2, "num_experts_per_tok": 1,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"], "linear_num_key_heads": 2,
    "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 16,
}  # fmt: skip
CONV = ["conv", "full_attention", "conv"]
MODELS = {
    "mamba": ("MambaForCausalLM", "mamba", {"model_type": "mamba", **MAMBA, "time_step_rank": 4}),
    "falcon_mamba": ("FalconMambaForCausalLM", "mamba", {"model_type": "falcon_mamba", **MAMBA, "time_step_rank": 4}),
    "mamba2": (
        "Mamba2ForCausalLM", "mamba", {"model_type": "mamba2", **MAMBA, "num_heads": 8, "head_dim": 16, "n_groups": 2},
    ),
    "lfm2": (
        "Lfm2ForCausalLM", "hybrids",
        {"model_type": "lfm2", **SIZES, "layer_types": CONV, "block_auto_adjust_ff_dim": False},
    ),
    "qwen3_next": ("Qwen3NextForCausalLM", "hybrids", {"model_type": "qwen3_next", **SIZES, **DELTA}),
}  # fmt: skip
SHAPES = {
    "mamba": ((3, 128), (128, 8)),
    "falcon_mamba": ((3, 128), (128, 8)),
    "mamba2": ((3, 160), (8, 16, 8)),
    "lfm2": ((2, 64),),
    "qwen3_next": ((3, 96), (4, 16, 8)),
}
"""As vLLM's calculators have them: inputs kept come before channels."""
CLASSES = {"falcon_mamba": "MambaForCausalLM"}
OTHERS = ("mamba", "mamba2", "lfm2")
every_model = pytest.mark.parametrize("name", MODELS)


def checked(folder, name, **options):
    architecture, module, config = MODELS[name]
    return check_equal(folder, architecture, module, config, name=CLASSES.get(name), **options)


def answers(llm, prompts):
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], GREEDY, use_tqdm=False)
    return [output.outputs[0].token_ids for output in outputs]


@every_model
def test_equals_transformers(tmp_path, name):
    llm = checked(tmp_path, name)
    cls, config = model_class(MODELS[name][1], CLASSES.get(name, MODELS[name][0])), changeable(llm.vllm_config)
    assert cls.get_mamba_state_shape_from_config(config) == SHAPES[name]
    assert set(cls.get_mamba_state_dtype_from_config(config)) == {torch.float32}


@every_model
def test_prompts_in_pieces_and_sequences_that_give_way(tmp_path, name):
    """Little room, so that prompts come in pieces and sequences are put back and begin again: the same answers."""
    llm = checked(tmp_path, name, max_num_batched_tokens=8, num_gpu_blocks_override=10, block_size=8, max_model_len=72)
    generator = torch.Generator().manual_seed(5)
    prompts = [torch.randint(0, 211, (length,), generator=generator).tolist() for length in (31, 17, 9, 20)]
    alone = [answers(llm, [ids])[0] for ids in prompts]
    assert answers(llm, prompts) == alone
    assert llm.engine.scheduler.stats().preemptions > 0
    assert answers(llm, [ids[:16] + ids[:3] for ids in prompts[:2]]) == [
        answers(llm, [ids[:16] + ids[:3]])[0] for ids in prompts[:2]
    ]


@pytest.mark.parametrize("name", [*(pytest.param(name, marks=pytest.mark.full) for name in OTHERS), "qwen3_next"])
def test_deterministic_mode_is_bitwise(tmp_path, name):
    llm = checked(tmp_path, name, deterministic=True, max_num_batched_tokens=16)
    ids = torch.randint(0, 211, (21,), generator=torch.Generator().manual_seed(1)).tolist()
    whole = prompt_logits(llm, ids)
    for chunk in (1, 8):
        assert torch.equal(prompt_logits(llm, ids, chunk=chunk), whole)
