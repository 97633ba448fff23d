"""Forms where the model is in other processes: divided among ranks, or behind `AsyncLLM`."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import jsonschema
import psutil
import pytest

from bestiary import LLM, SamplingParams
from bestiary.api.errors import EngineError, RequestError
from bestiary.engine.arguments import EngineArgs
from bestiary.serve.async_llm import AsyncLLM

from .test_engine import JSON, PROMPT, SCHEMA, params


def full(options: dict[str, int]) -> Any:
    return pytest.param(options, marks=pytest.mark.full)


@pytest.mark.parametrize(
    "options",
    [
        {"pipeline_parallel_size": 2},
        full({"tensor_parallel_size": 2}),
        full({"pipeline_parallel_size": 2, "data_parallel_size": 2}),
    ],
)
def test_whichever_rank_draws_has_the_grammar(llm: LLM, checkpoint: Path, options: dict[str, int]) -> None:
    asked = [params(JSON, seed=seed, n=2) for seed in range(3)] + [params(None, max_tokens=30)]
    expected = llm.generate([PROMPT] * 4, asked, use_tqdm=False)
    with LLM(str(checkpoint), dtype="float32", device="cpu", progress=False, **options) as divided:  # type: ignore[arg-type]
        found = divided.generate([PROMPT] * 4, asked, use_tqdm=False)
        with pytest.raises(RequestError):
            divided.generate(PROMPT, params({"regex": "("}), use_tqdm=False)
    for ours, theirs in zip(found, expected, strict=True):
        assert [each.text for each in ours.outputs] == [each.text for each in theirs.outputs]
    for output in found[:3]:
        for each in output.outputs:
            jsonschema.validate(json.loads(each.text), SCHEMA)


def with_llm(checkpoint: Path, work: Callable[[AsyncLLM], Awaitable[None]]) -> None:
    async def run() -> None:
        args = EngineArgs.make(str(checkpoint), {"dtype": "float32", "progress": False})
        llm = await AsyncLLM.start(args)
        try:
            await llm.wait_ready()
            await asyncio.wait_for(work(llm), 100)
        finally:
            await llm.close()

    before = set(psutil.Process().children())
    asyncio.run(run())
    assert set(psutil.Process().children()) <= before, "neither the engine nor who tries forms is left"


async def answer(llm: AsyncLLM, name: str, given: SamplingParams) -> Any:
    await llm.check_structured_outputs(given)
    output = await llm.submit(name, await llm.encode(PROMPT), given).wait()
    return output.outputs[0]


def test_forms_behind_an_engine_process(llm: LLM, checkpoint: Path) -> None:
    expected = llm.generate(PROMPT, params(JSON), use_tqdm=False)[0].outputs[0]

    async def work(served: AsyncLLM) -> None:
        with pytest.raises(EngineError, match="not tried before"):
            served.submit("early", [5, 6], params(JSON))
        assert served.num_live == 0
        for form, code in (({"json": {"type": "objekt"}}, "BAD_SCHEMA"), ({"regex": "("}, "BAD_REGEX")):
            for _ in range(2):
                with pytest.raises(RequestError) as caught:
                    await answer(served, "bad", params(form))
                assert caught.value.error_code == code
        first, other, free = await asyncio.gather(
            answer(served, "1", params(JSON)),
            answer(served, "2", params({"regex": "[ab]{9}"})),
            answer(served, "3", params(None, max_tokens=9)),
        )
        assert first.token_ids == expected.token_ids
        assert set(other.text) <= {"a", "b"} and len(other.text) == len(free.token_ids) == 9
        await _bombs(served)

    with_llm(checkpoint, work)


async def _bombs(served: AsyncLLM) -> None:
    """G08: many at once that take too long, beside answers that go on; they are sent away, and the next is tried."""
    bombs = [
        served.check_structured_outputs(params({"json": {"type": "integer", "multipleOf": 9_999_991 + 2 * count}}))
        for count in range(8)
    ]
    tried = asyncio.gather(*bombs, return_exceptions=True)
    seen = 0
    while not tried.done():
        beside = await answer(served, f"beside {seen}", params(JSON, seed=seen))
        jsonschema.validate(json.loads(beside.text), SCHEMA)
        seen += 1
    codes = [error.error_code for error in tried.result() if isinstance(error, RequestError)]
    assert len(codes) == 8 and "GRAMMAR_LIMIT" in codes and set(codes) <= {"GRAMMAR_LIMIT", "QUEUE_FULL"}
    assert seen > 0
    await served.check_structured_outputs(params({"regex": "a"}))


@pytest.mark.full
def test_the_engine_process_after_one_that_died_is_told_of_the_tokenizer_as_well(checkpoint: Path) -> None:
    async def work(served: AsyncLLM) -> None:
        first = await answer(served, "1", params(JSON))
        os.kill(served.engine_pid or 0, signal.SIGKILL)
        while served.state == "ready":
            await served.changes()
        await served.wait_ready()
        again = await answer(served, "2", params(JSON))
        assert again.token_ids == first.token_ids

    with_llm(checkpoint, work)
