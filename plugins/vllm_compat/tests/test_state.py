"""Models with states: Mamba, Mamba 2, LFM2, Qwen3-Next, as files for vLLM have them, through the engine."""

import pytest
import torch
from corpus_check import SIZES, check_equal, model_class
from transformers import PreTrainedConfig

from bestiary import SamplingParams
from bestiary.api.errors import ConfigError
from bestiary.nn import get_rope
from bestiary.nn.ops.norm import gemma_rms_norm
from bestiary.testing.logits import prompt_logits
from bestiary_vllm.changeable import changeable
from bestiary_vllm.shims.fused import fused_qk_rmsnorm_rope_gate
from bestiary_vllm.shims.state import MiniMaxText01LinearAttention
from bestiary_vllm.shims.state_shapes import (
    MambaStateCopyFuncCalculator,
    MambaStateDtypeCalculator,
    MambaStateShapeCalculator,
)

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
def test_equals_transformers(tmp_path, name, caplog):
    llm = checked(tmp_path, name)
    assert ("MambaMixer2(hidden_states, output) is an older spelling" in caplog.text) == (name == "mamba2")
    cls, config = model_class(MODELS[name][1], CLASSES.get(name, MODELS[name][0])), changeable(llm.vllm_config)
    assert cls.get_mamba_state_shape_from_config(config) == SHAPES[name]
    assert set(cls.get_mamba_state_dtype_from_config(config)) == {torch.float32}


@pytest.mark.gpu
@every_model
def test_equals_transformers_on_a_gpu(tmp_path, name):
    checked(tmp_path, name, device="cuda")


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


def test_states_among_ranks():
    shapes, dtypes = MambaStateShapeCalculator, MambaStateDtypeCalculator
    assert shapes.mamba2_state_shape(4, 64, 1, 8, 8, 16, 4) == ((3, 16 + 2 * 16), (2, 8, 16))
    assert shapes.mamba2_state_shape(2, 64, 2, 8, 8, 16, 4, num_spec=1) == ((4, 32 + 2 * 16), (4, 8, 16))
    assert shapes.kda_state_shape(2, 4, 8) == ((3, 48), (2, 8, 8))
    assert shapes.linear_attention_state_shape(num_heads=4, tp_size=2, head_dim=8) == ((2, 8, 8),)
    assert dtypes.kda_state_dtype(torch.bfloat16, "auto") == (torch.bfloat16, torch.float32)
    assert dtypes.mamba2_state_dtype("bfloat16", "auto", "float32") == (torch.bfloat16, torch.float32)
    with pytest.raises(ConfigError):
        dtypes.short_conv_state_dtype(torch.bfloat16, "int3")


def test_what_would_copy_states():
    conv, recurrent = MambaStateCopyFuncCalculator.mamba2_state_copy_func()
    state = torch.arange(24.0).view(4, 3, 2)
    assert torch.equal(conv(state, [3, 1], 1, 2), state[1, 1:])
    assert torch.equal(recurrent(state, [3, 1], 0, 2), state[1])


def test_linear_attention_by_its_older_arguments(caplog):
    sizes = {"hidden_size": 32, "num_heads": 4, "head_dim": 8, "num_hidden_layer": 6, "layer_idx": 2}
    config = PreTrainedConfig(hidden_size=32, num_attention_heads=4, head_dim=8, num_hidden_layers=6)
    older, newer = MiniMaxText01LinearAttention(**sizes), MiniMaxText01LinearAttention(config, None, "layers.2.attn")
    assert torch.equal(older.rates, newer.rates)
    assert "is an older spelling" in caplog.text


def test_queries_keys_and_gates_in_one():
    generator = torch.Generator().manual_seed(2)
    q_gate, k, weights = (torch.randn(*shape, generator=generator) for shape in ((5, 2, 16), (5, 1, 8), (2, 8)))
    rope = get_rope(8, max_position=32, rope_parameters={"rope_type": "default", "partial_rotary_factor": 0.5})
    positions = torch.arange(7, 12)
    q, keys, gate = fused_qk_rmsnorm_rope_gate(
        q_gate.flatten(1), k.flatten(1), *weights, rope.cos_sin_cache, positions, 1e-5, 2, 1, 8, 4, norm_beta=1.0
    )
    normed = gemma_rms_norm(q_gate[..., :8], weights[0], 1e-5), gemma_rms_norm(k, weights[1], 1e-5)
    wanted = rope(positions, *(each.flatten(1) for each in normed))
    torch.testing.assert_close((q, keys), wanted)
    assert torch.equal(gate, q_gate[..., 8:].flatten(1))
