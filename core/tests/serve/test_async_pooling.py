"""Vectors from an engine process: the numbers of the offline engine, refusals at once, and ends of every kind."""

import asyncio

import pytest
import torch
import transformers

from bestiary import LLM, PoolingParams, SamplingParams
from bestiary.api.errors import RequestError
from bestiary.engine.arguments import EngineArgs
from bestiary.engine.pooling import PoolingOffer
from bestiary.serve.async_llm import AsyncLLM

OPTIONS = {"dtype": "float32", "skip_tokenizer_init": True, "progress": False, "runner": "pooling", "max_num_seqs": 4}
PROMPTS = [[4 + index, 5, 6][: 1 + index % 3] for index in range(9)]
EMBED = PoolingParams(task="embed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(5)
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, vocab_size=90,
        max_position_embeddings=128, initializer_range=0.3, eos_token_id=2,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(made)
    return str(made)


def refused(call, *arguments):
    with pytest.raises(RequestError) as caught:
        call(*arguments)
    return caught.value.error_code


async def conversation(llm):
    info = await llm.wait_ready()
    assert info.pooling == PoolingOffer(("embed",), 32)
    asked = [llm.submit_pooling(f"text {index}", ids, EMBED) for index, ids in enumerate(PROMPTS)]
    assert llm.num_live == len(PROMPTS)
    assert refused(llm.submit_pooling, "text 0", [4], EMBED) == "DUPLICATE_REQUEST"
    assert refused(llm.submit_pooling, "new", [90], EMBED) == "TOKEN_OUT_OF_RANGE"
    assert refused(llm.submit_pooling, "new", [4] * 129, EMBED) == "CONTEXT_LENGTH_EXCEEDED"
    assert refused(llm.submit_pooling, "new", [4], PoolingParams(dimensions=33)) == "BAD_REQUEST"
    assert refused(llm.submit_pooling, "new", [4], PoolingParams(task="classify")) == "TASK_UNSUPPORTED"
    assert refused(llm.submit, "new", [4], SamplingParams()) == "WRONG_RUNNER"
    unwanted = llm.submit_pooling("unwanted", [4] * 100, EMBED)
    unwanted.abort()
    assert unwanted.output.outputs.finish_reason == "abort"
    outputs = [await each.wait() for each in asked]
    assert llm.num_live == 0 and llm.stats().used_blocks == 0
    return [each.outputs.embedding for each in outputs]


def test_vectors_are_those_of_the_offline_engine(folder):
    async def run():
        llm = await AsyncLLM.start(EngineArgs.make(folder, OPTIONS))
        try:
            return await asyncio.wait_for(conversation(llm), 100)
        finally:
            await llm.close()

    found = asyncio.run(run())
    with LLM(folder, **OPTIONS) as llm:
        want = [each.outputs.embedding for each in llm.embed(PROMPTS, use_tqdm=False)]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(want), atol=1e-6, rtol=0)
