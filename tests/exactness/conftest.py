"""A tiny random Llama, and engines over it that differ only in how they schedule."""

import pytest
import torch
import transformers

from bestiary import LLM


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(11)
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=101, max_position_embeddings=256, initializer_range=0.3, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def engine(checkpoint):
    """`engine(**options)`: an `LLM`, made once for each set of options."""
    made = {}

    def make(**options):
        key = tuple(sorted(options.items()))
        if key not in made:
            made[key] = LLM(checkpoint, dtype="float32", skip_tokenizer_init=True, progress=False, **options)
        return made[key]

    return make


@pytest.fixture(scope="session")
def alone(engine):
    """The oracle: each request by itself, whole, without a prefix cache."""
    llm = engine(enable_prefix_caching=False, max_num_seqs=1)
    known = {}

    def run(prompt, params):
        key = (tuple(prompt), repr(params))
        if key not in known:
            (output,) = llm.generate([{"prompt_token_ids": list(prompt)}], params, use_tqdm=False)
            known[key] = output.outputs[0]
        return known[key]

    return run
