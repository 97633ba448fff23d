"""Whole models whose steps are planned ahead: the same tokens, also where tokens stay on the device meanwhile."""

import pytest
import transformers

from bestiary import LLM, SamplingParams

PROMPTS = [[1, 5, 9], [7] * 20, [2, 3], list(range(3, 40))]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("ahead")
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=211, max_position_embeddings=128, initializer_range=0.3,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    return str(path)


def answers(checkpoint, params, *, defers=False, **options):
    llm = LLM(checkpoint, dtype="float32", kernels="torch", skip_tokenizer_init=True, progress=False, **options)
    llm.engine.executor.runner.defers = defers
    try:
        made = llm.generate([{"prompt_token_ids": ids} for ids in PROMPTS], params, use_tqdm=False)
        return [each.outputs[0].token_ids for each in made]
    finally:
        llm.close()


GREEDY = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)
DRAWN = [
    SamplingParams(temperature=0.9, top_k=20, seed=number, max_tokens=4 * number + 3, stop_token_ids=[17, 99])
    for number in range(4)
]


@pytest.mark.parametrize("params", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_the_same_tokens(checkpoint, params):
    assert answers(checkpoint, params, async_scheduling=True) == answers(checkpoint, params)


@pytest.mark.parametrize("params", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_the_same_tokens_where_they_stay_on_the_device(checkpoint, params):
    ahead = answers(checkpoint, params, defers=True, async_scheduling=True)
    waits = {"max_num_seqs": 1}  # each draw is a function of its request alone
    assert ahead == answers(checkpoint, params, defers=True, async_scheduling=True, **waits)
    if params is GREEDY:
        assert ahead == answers(checkpoint, params)


def test_ranks_that_divide_a_model_do_not_plan_ahead(checkpoint):
    with pytest.raises(Exception, match="not planned ahead where ranks divide a model"):
        LLM(checkpoint, async_scheduling=True, tensor_parallel_size=2, skip_tokenizer_init=True, progress=False)


@pytest.mark.gpu
@pytest.mark.parametrize("eager", [False, True], ids=["recorded", "op by op"])
def test_on_a_gpu(checkpoint, eager):
    options = {"device": "cuda", "kernels": "auto", "enforce_eager": eager}
    found = []
    for ahead in (False, True):
        llm = LLM(
            checkpoint, dtype="float32", skip_tokenizer_init=True, progress=False, async_scheduling=ahead, **options
        )
        made = llm.generate([{"prompt_token_ids": ids} for ids in PROMPTS], DRAWN, use_tqdm=False)
        found.append([each.outputs[0].token_ids for each in made])
        llm.close()
    assert found[0] == found[1]
