"""A server's engine on native kernels: it says what it runs on, and answers as the same engine in this process."""

import asyncio

import pytest
from models import GREEDY, PROMPTS, checkpoint, llm

from bestiary.engine.arguments import EngineArgs
from bestiary.serve.async_llm import AsyncLLM


async def served(options):
    args = EngineArgs.make(checkpoint("llama"), {"skip_tokenizer_init": True, "progress": False, **options})
    server = await AsyncLLM.start(args)
    try:
        info = await server.wait_ready()
        running = [server.submit(str(index), ids, GREEDY) for index, ids in enumerate(PROMPTS)]
        return info, [await last_of(each) for each in running]
    finally:
        await server.close()


async def last_of(generation):
    """The token ids of a whole answer."""
    answer = None
    async for output in generation:
        answer = output.outputs[0].token_ids
    return list(answer)


@pytest.mark.parametrize("quantization", [None, "int8"])
def test_the_engine_process_answers_as_this_one(quantization):
    options = {"kernels": "auto", "quantization": quantization, "num_gpu_blocks_override": 128}
    info, answers = asyncio.run(served(options))
    assert info.quantization == quantization and info.ops["rms_norm"] == "native"
    assert info.attention_backend == "NativeBackend"
    with llm(checkpoint("llama"), quantization=quantization) as here:
        outputs = here.generate([{"prompt_token_ids": ids} for ids in PROMPTS], GREEDY, use_tqdm=False)
    assert answers == [list(each.outputs[0].token_ids) for each in outputs]
