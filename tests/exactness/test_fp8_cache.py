"""With an fp8 KV cache, too, an answer does not depend on how it was scheduled."""

import pytest

from bestiary import SamplingParams

PROMPTS = [[5 + index, *range(10, 10 + 9 * index), 7, 8] for index in range(5)]
GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
SCHEDULES = {
    "in pieces": {"max_num_batched_tokens": 16},
    "preempted": {"num_gpu_blocks_override": 14, "block_size": 8, "enable_prefix_caching": False},
    "without a prefix cache": {"enable_prefix_caching": False},
}


def answers(llm):
    given = [{"prompt_token_ids": ids} for ids in PROMPTS]
    return [output.outputs[0].token_ids for output in llm.generate(given, GREEDY, use_tqdm=False)]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_tokens_are_those_of_each_request_alone(engine, schedule):
    alone = engine(kv_cache_dtype="fp8", max_num_seqs=1, enable_prefix_caching=False)
    llm = engine(kv_cache_dtype="fp8", **SCHEDULES[schedule])
    want = answers(alone)
    assert answers(llm) == want
    assert answers(llm) == want  # with whatever the first time left in the cache
    if schedule == "preempted":
        assert llm.engine.stats().preemptions > 0
