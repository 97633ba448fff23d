"""The engine process dies, stops or hangs (F01, F04, F05): requests end at once, and another process answers."""

import asyncio
import os
import signal
import time

import pytest

from .support.chaos import HARMLESS
from .support.scene import SMALL_STEPS, SONGS
from .support.times import TIMES


async def killed(scene, when):
    """Kill the engine process. Returns the canaries, which have sung again since, and the seconds until every request
    had ended and until the next process was ready."""
    llm, pid = scene.llm, scene.llm.engine_pid
    if when == "idle":
        return None, *await dead_and_back(llm, pid)
    async with scene.canaries() as canaries:
        if when == "prefill":
            await scene.in_a_prompt()
        seconds = await dead_and_back(llm, pid)
        await canaries.sing()
    return canaries, *seconds


async def dead_and_back(llm, pid):
    started = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    await gone(llm, pid)
    ended = time.monotonic()
    await llm.wait_ready()
    return ended - started, time.monotonic() - started


async def gone(llm, pid):
    """Until the death is known, and with it every request's end."""
    while llm.engine_pid == pid:
        await asyncio.sleep(0.001)


def check_canaries(canaries, code):
    """Each ended once with the error, with the oracle's tokens up to there, and sang to the end afterwards."""
    assert canaries.wrong == []
    assert set(canaries.ended) == {"length", code}
    assert canaries.ended[code] == len(SONGS)


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("when", ["prefill", "decode", "idle"])
def test_killed(scenes, case, when, times):
    scene, ends, readies = scenes(**SMALL_STEPS), [], []
    for _ in range(times):
        scene.forgive()
        restarts = scene.llm.restarts
        canaries, ended, ready = scene.run(killed(scene, when))
        if canaries is not None:
            check_canaries(canaries, "ENGINE_DEAD")
        assert scene.llm.restarts == restarts + 1
        ends.append(ended)
        readies.append(ready)
    scene.run(scene.check_baseline())
    case("F01", times, seconds_to_error=max(ends), seconds_to_ready=max(readies))


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("what", ["exit", "segv"])
def test_the_plugin_ends_the_process(scenes, case, what, times):
    scene = scenes(**SMALL_STEPS)

    async def work():
        pid = scene.llm.engine_pid
        async with scene.canaries() as canaries:
            _, code = await scene.provoke(what, "decode")
            await gone(scene.llm, pid)
            await canaries.sing()
        return canaries, code

    for _ in range(times):
        scene.forgive()
        canaries, code = scene.run(work())
        assert code == "ENGINE_DEAD"
        assert ("status 9" if what == "exit" else "SIGSEGV") in str(scene.llm.error)
        check_canaries(canaries, "ENGINE_DEAD")
    scene.run(scene.check_baseline())
    case("F01", times)


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("when", ["decode", "idle", pytest.param("prefill", marks=pytest.mark.full)])
def test_stopped_and_continued(scenes, case, when, times):
    scene = scenes(unready_after=1.0, **SMALL_STEPS)
    pid, restarts, seconds = scene.llm.engine_pid, scene.llm.restarts, []

    async def stopped():
        started = time.monotonic()
        os.kill(pid, signal.SIGSTOP)
        while scene.llm.state != "stalled":
            await scene.llm.changes()
        seconds.append(time.monotonic() - started)
        os.kill(pid, signal.SIGCONT)
        while scene.llm.state != "ready":
            await scene.llm.changes()

    async def work():
        if when == "idle":
            return await stopped()
        async with scene.canaries() as canaries:
            if when == "decode":
                await stopped()
                return canaries
            long, prompt = await scene.in_a_prompt()
            await stopped()
            assert (await long.wait()).outputs[0].token_ids == scene.golden.tokens(prompt, HARMLESS)
        return canaries

    for _ in range(times):
        canaries = scene.run(work())
        assert canaries is None or canaries.are_well
    scene.run(scene.check_baseline())
    assert (scene.llm.engine_pid, scene.llm.restarts) == (pid, restarts)
    case("F04", times, seconds_to_unready=max(seconds))


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize(("what", "when"), [("sleep", "decode"), ("hold", "prefill")])
def test_a_step_that_never_ends(scenes, case, what, when, times):
    """`sleep` lets the process beat meanwhile; `hold` keeps the interpreter's lock, so that nothing of it stirs."""
    scene = scenes(stall_timeout=3.0, unready_after=1.0)

    async def work():
        async with scene.canaries() as canaries:
            _, code = await scene.provoke(what, when)
            await canaries.sing()
        return canaries, code

    for _ in range(times):
        scene.forgive()
        canaries, code = scene.run(work())
        assert code == "ENGINE_STALLED"
        assert "ChaosForCausalLM (chaos-plugin)" in str(scene.llm.error)
        check_canaries(canaries, "ENGINE_STALLED")
    scene.run(scene.check_baseline())
    case("F05", times)
