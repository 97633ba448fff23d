"""Too few KV-cache blocks (F07), no process to be had (F13), damaged weights (F11), a model that always fails (F10)."""

import asyncio
import hashlib
import os
import random
import resource
import shutil
import signal
from dataclasses import replace

import pytest

from bestiary import LLM
from bestiary.api.errors import LoadError, RequestError
from bestiary.engine.arguments import EngineArgs
from bestiary.engine.loader.checksum import verify_files
from bestiary.engine.process import supervisor
from bestiary.serve.async_llm import AsyncLLM

from .support.chaos import HARMLESS
from .support.scene import PATIENCE, PLAIN, Scene
from .support.times import TIMES

LONG = replace(HARMLESS, max_tokens=60)
PROMPTS = [[20 + number, *range(100, 159)] for number in range(32)]
"""With their answers 120 tokens each: 8 blocks of 16."""


@pytest.mark.parametrize("times", TIMES)
def test_too_few_blocks_for_all_at_once(t0, golden, chaos_file, case, times):
    """F07: a cache of 1.2 times one request. All complete, by being preempted and computed again, with the same tokens;
    what can never fit is refused with the numbers."""
    scene = Scene.open(t0, golden, num_gpu_blocks_override=10)

    async def work():
        asked = [scene.llm.submit(str(number), prompt, LONG) for number, prompt in enumerate(PROMPTS)]
        with pytest.raises(RequestError) as caught:
            scene.llm.submit("never", PROMPTS[0], replace(LONG, max_tokens=102))
        assert caught.value.error_code == "KV_CACHE_EXCEEDED"
        assert "161" in str(caught.value)
        return [(await each.wait()).outputs[0].token_ids for each in asked]

    want = [golden.tokens(prompt, LONG) for prompt in PROMPTS]
    try:
        for _ in range(times):
            assert scene.run(work()) == want
        preemptions = scene.llm.stats().preemptions
        assert preemptions > 0
        scene.run(scene.check_baseline())
    finally:
        scene.close()
    case("F07", times * len(PROMPTS), preemptions=preemptions)


@pytest.mark.parametrize("times", TIMES)
def test_a_model_that_always_fails_is_given_up_at_once(t0, golden, chaos_file, case, times):
    """F10: it is not restarted, since the next process would fail as well; this one goes on."""

    async def work(llm):
        asked = llm.submit("long", [40, 41], replace(HARMLESS, max_tokens=900))
        chaos_file.write_text("raise")
        while llm.state != "failed":
            await llm.changes()
        with pytest.raises(RequestError) as caught:
            llm.submit("next", [40, 41], HARMLESS)
        assert caught.value.error_code == "ENGINE_NOT_READY"
        return asked

    for _ in range(times):
        scene = Scene.open(t0, golden)
        try:
            asked = scene.run(work(scene.llm))
            assert asked.error.error_code == scene.llm.error.error_code == "MODEL_FAILED"
            assert scene.llm.restarts == 0
        finally:
            chaos_file.unlink(missing_ok=True)
            scene.close()
    case("F10", times)


@pytest.mark.parametrize("times", TIMES)
def test_no_process_can_be_started(t0, chaos_file, case, monkeypatch, times):
    """F13: a restart without a descriptor left is tried again and then given up, with the system's own words."""
    monkeypatch.setattr(supervisor, "MOST_RESTARTS", 2)

    async def work():
        llm = await AsyncLLM.start(EngineArgs.make(str(t0), PLAIN))
        await llm.wait_ready()
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        try:
            os.kill(llm.engine_pid, signal.SIGKILL)
            while llm.state != "failed":
                await llm.changes()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            await llm.close()
        return llm.error

    for _ in range(times):
        error = asyncio.run(asyncio.wait_for(work(), PATIENCE))
        assert error.error_code == "ENGINE_DEAD"
        assert "Too many open files" in error.message
    case("F13", times)


@pytest.mark.parametrize("flips", [30, pytest.param(1000, marks=pytest.mark.full)])
def test_flipped_bits(t0, tmp_path, case, flips):
    """F11: in a header an error, or nothing that matters; anywhere, a file that is not the published one."""
    folder = tmp_path / "model"
    shutil.copytree(t0, folder)
    weights = folder / "model.safetensors"
    good = weights.read_bytes()
    (folder / "model.safetensors.sha256").write_text(f"{hashlib.sha256(good).hexdigest()}  model.safetensors\n")
    header = 8 + int.from_bytes(good[:8], "little")
    draw, refused = random.Random(7), 0
    with LLM(str(t0), skip_tokenizer_init=True, progress=False) as llm:
        want = llm.generate([[5, 6, 7]], HARMLESS, use_tqdm=False)[0].outputs[0].token_ids
    for number in range(flips):
        data = bytearray(good)
        in_header = number % 3 == 0
        data[draw.randrange(header if in_header else len(data))] ^= 1 << draw.randrange(8)
        weights.write_bytes(data)
        with pytest.raises(LoadError):
            verify_files([weights])
        if not in_header:
            continue
        try:
            with LLM(str(folder), skip_tokenizer_init=True, progress=False) as llm:
                assert llm.generate([[5, 6, 7]], HARMLESS, use_tqdm=False)[0].outputs[0].token_ids == want
        except LoadError:
            refused += 1
    assert refused > flips // 4
    case("F11", flips, headers_refused=refused)
