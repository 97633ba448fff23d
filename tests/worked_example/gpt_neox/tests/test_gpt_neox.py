"""The contract is the test: every check of it is one test here. What no contract asks stands below."""

from gpt_neox.contract import TestGPTNeoX
from gpt_neox.model import GPTNeoXForCausalLM

__all__ = ["TestGPTNeoX"]


def test_what_older_checkpoints_carry_along_is_left_out():
    """Pythia's files hold causal masks and frequencies; a bias of attention is no mask."""
    rename = GPTNeoXForCausalLM.hf_to_vllm_mapper.map_name
    attention = "gpt_neox.layers.0.attention."
    for name in ("bias", "masked_bias", "rotary_emb.inv_freq"):
        assert rename(attention + name) is None
    for name in ("query_key_value.bias", "dense.bias"):
        assert rename(attention + name) == attention + name
