"""A model in a process of its own: the same tokens, one terminal event each, and another process after a death."""

import asyncio
import os
import signal

import psutil
import pytest
import torch
import transformers

from bestiary import LLM, SamplingParams
from bestiary.api.errors import EngineError, ModelError, RequestError
from bestiary.api.registry import ModelRegistry
from bestiary.engine.arguments import EngineArgs
from bestiary.engine.process import supervisor
from bestiary.serve.async_llm import AsyncLLM

GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
LONG = SamplingParams(temperature=0, max_tokens=400, ignore_eos=True)
OPTIONS = {"dtype": "float32", "skip_tokenizer_init": True, "progress": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(5)
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, vocab_size=90,
        max_position_embeddings=512, initializer_range=0.3, eos_token_id=2,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(made)
    return str(made)


@pytest.fixture(scope="module")
def want(folder):
    with LLM(folder, **OPTIONS) as llm:
        yield lambda ids, params=GREEDY: llm.generate([ids], params, use_tqdm=False)[0].outputs[0].token_ids


def with_llm(folder, work, **options):
    """Run `work(llm)` on an event loop of its own, and look that no process is left."""

    async def run():
        started = {name: options.pop(name) for name in ("restart", "unready_after") if name in options}
        llm = await AsyncLLM.start(EngineArgs.make(folder, OPTIONS | options), **started)
        try:
            await llm.wait_ready()
            return await asyncio.wait_for(work(llm), 100)
        finally:
            await llm.close()
            assert llm.state == "closed"

    before = set(psutil.Process().children())
    found = asyncio.run(run())
    assert set(psutil.Process().children()) <= before
    return found


def test_many_requests_get_the_tokens_of_the_offline_engine(folder, want):
    prompts = [[4 + index, 5, 6][: 1 + index % 3] for index in range(12)]

    async def work(llm):
        asked = [llm.submit(str(index), ids, GREEDY) for index, ids in enumerate(prompts)]
        with pytest.raises(RequestError, match="in use"):
            llm.submit("0", [4], GREEDY)
        outputs = await asyncio.gather(*(each.wait() for each in asked))
        assert llm.num_live == 0 and llm.stats().used_blocks == 0 and llm.stats().steps > 0
        return [output.outputs[0].token_ids for output in outputs]

    expected = [want(ids) for ids in prompts]
    assert with_llm(folder, work) == expected


def test_what_can_never_run_is_refused_at_once(folder):
    async def work(llm):
        for ids, params, code in (
            ([90], GREEDY, "TOKEN_OUT_OF_RANGE"),
            ([], GREEDY, "EMPTY_PROMPT"),
            ([4] * 510, GREEDY, "CONTEXT_LENGTH_EXCEEDED"),
            ([4], SamplingParams(bad_token_ids=range(90)), "NOTHING_TO_DRAW"),
        ):
            with pytest.raises(RequestError) as caught:
                llm.submit("x", ids, params)
            assert caught.value.error_code == code
        assert llm.num_live == 0
        asked = [llm.submit(str(index), [4, 5], LONG) for index in range(3)]
        with pytest.raises(RequestError) as caught:
            llm.submit("one more", [4], GREEDY)
        assert caught.value.error_code == "QUEUE_FULL"
        for each in asked:
            each.abort()
            each.abort()
        assert [each.output.outputs[0].finish_reason for each in asked] == ["abort"] * 3
        return await llm.submit("again", [4], GREEDY).wait()

    assert len(with_llm(folder, work, max_num_seqs=2, max_queue=1).outputs[0].token_ids) == 6


@pytest.mark.parametrize("how", [signal.SIGKILL, pytest.param(signal.SIGSEGV, marks=pytest.mark.full)])
def test_after_a_death_requests_end_with_an_error_and_another_process_answers(folder, want, how):
    async def work(llm):
        first = llm.engine_pid
        asked = [llm.submit(str(index), [4, 5], LONG) for index in range(4)]
        async for output in asked[0]:
            if output.outputs[0].token_ids and not output.finished:
                os.kill(first, how)
                break
        outputs = [await each.wait() for each in asked]
        assert {output.outputs[0].finish_reason for output in outputs} == {"error"}
        assert all(each.error.error_code == "ENGINE_DEAD" for each in asked)
        assert how.name in asked[0].output.outputs[0].stop_reason
        with pytest.raises(RequestError) as caught:
            llm.submit("too early", [4], GREEDY)
        assert caught.value.error_code == "ENGINE_NOT_READY"
        await llm.wait_ready()
        assert llm.restarts == 1 and llm.engine_pid != first and llm.num_live == 0
        return (await llm.submit("0", [4, 5, 6], GREEDY).wait()).outputs[0].token_ids

    assert with_llm(folder, work) == want([4, 5, 6])


def test_one_that_dies_again_and_again_is_given_up(folder, monkeypatch):
    monkeypatch.setattr(supervisor, "MOST_RESTARTS", 1)

    async def work(llm):
        for _ in range(2):
            os.kill(llm.engine_pid, signal.SIGKILL)
            while llm.state not in ("restarting", "starting", "failed"):
                await llm.changes()
            if llm.state != "failed":
                await llm.wait_ready()
        with pytest.raises(EngineError) as caught:
            await llm.wait_ready()
        assert caught.value.error_code == "ENGINE_DEAD"

    with_llm(folder, work)


@pytest.mark.full
def test_one_that_is_stopped_counts_as_stalled_and_comes_back(folder, want):
    async def work(llm):
        asked = llm.submit("0", [4, 5], LONG)
        os.kill(llm.engine_pid, signal.SIGSTOP)
        while llm.state != "stalled":
            await llm.changes()
        os.kill(llm.engine_pid, signal.SIGCONT)
        while llm.state != "ready":
            await llm.changes()
        assert llm.restarts == 0
        return (await asked.wait()).outputs[0].token_ids

    expected = want([4, 5], LONG)
    assert with_llm(folder, work, unready_after=1.0) == expected


@pytest.mark.full
def test_one_that_does_not_come_back_is_replaced(folder):
    async def work(llm):
        asked = llm.submit("0", [4, 5], LONG)
        os.kill(llm.engine_pid, signal.SIGSTOP)
        await asked.wait()
        assert asked.error.error_code == "ENGINE_STALLED"
        assert "LlamaForCausalLM" in asked.error.message
        await llm.wait_ready()

    with_llm(folder, work, stall_timeout=1.5)


def test_draining_waits_for_what_runs_and_ends_the_rest(folder):
    async def work(llm):
        short, long = llm.submit("0", [4, 5], GREEDY), llm.submit("1", [4, 5], LONG)
        llm.submit("2", [4, 5], LONG)
        draining = asyncio.create_task(llm.drain(0.0))
        await asyncio.sleep(0)
        assert llm.state == "draining"
        with pytest.raises(RequestError) as caught:
            llm.submit("3", [4], GREEDY)
        assert caught.value.error_code == "SERVER_SHUTDOWN"
        await draining
        assert long.error.error_code == "SERVER_SHUTDOWN"
        assert short.output.finished and long.output.finished

    with_llm(folder, work)


def test_a_bad_model_is_not_tried_again(folder, tmp_path):
    async def run():
        llm = await AsyncLLM.start(EngineArgs.make(folder, OPTIONS | {"kv_cache_memory_bytes": 1}))
        try:
            with pytest.raises(EngineError) as caught:
                await llm.wait_ready()
            assert llm.state == "failed" and llm.restarts == 0
            return caught.value
        finally:
            await llm.close()

    assert asyncio.run(run()).message
    with pytest.raises(ModelError):
        asyncio.run(AsyncLLM.start(EngineArgs.make(str(tmp_path), {})))


SEVENS = """
from llama_plugin.llama import LlamaForCausalLM


class Sevens(LlamaForCausalLM):
    def compute_logits(self, hidden_states):
        logits = super().compute_logits(hidden_states)
        logits[:, 7] = 1e4
        return logits
"""


@pytest.fixture
def registered():
    """Register by hand, and forget it afterwards."""
    yield ModelRegistry.register_model
    ModelRegistry._by_hand.clear()


def test_a_class_registered_by_hand_reaches_the_engines_process(folder, tmp_path, monkeypatch, registered):
    (tmp_path / "sevens.py").write_text(SEVENS)
    monkeypatch.syspath_prepend(tmp_path)
    registered("LlamaForCausalLM", "sevens:Sevens")

    async def work(llm):
        return (await llm.submit("0", [4, 5], GREEDY).wait()).outputs[0].token_ids

    assert with_llm(folder, work) == [7] * 6


def test_a_class_that_another_process_cannot_import_is_refused(folder, registered):
    from llama_plugin.llama import LlamaForCausalLM

    class Local(LlamaForCausalLM):
        pass

    registered("LlamaForCausalLM", Local)
    with pytest.raises(EngineError, match="registered by hand, and other processes cannot import it"):
        with_llm(folder, None)
    registered("LlamaForCausalLM", LlamaForCausalLM)
    registered("AnotherForCausalLM", Local)
    with_llm(folder, lambda llm: asyncio.sleep(0))
