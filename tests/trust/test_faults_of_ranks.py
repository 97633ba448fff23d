"""A rank of a divided model dies (F02): as if the engine had, with nobody left hanging in a collective."""

import os
import signal

import pytest

from .support.baseline import alive
from .support.scene import SMALL_STEPS, SONGS
from .support.times import shares

LAYOUTS = {"TP": "tensor_parallel_size", "PP": "pipeline_parallel_size"}
MOMENTS = ["prefill", "decode", "idle"]
ONCE, *OFTEN = shares(len(LAYOUTS) * len(MOMENTS))
EVERY_CHANGE = ("TP", "decode")
CASES = [
    pytest.param(layout, when, ONCE, marks=() if (layout, when) == EVERY_CHANGE else pytest.mark.full)
    for layout in LAYOUTS for when in MOMENTS
] + [
    pytest.param(layout, when, *times.values, marks=times.marks)
    for times in OFTEN for layout in LAYOUTS for when in MOMENTS
]  # fmt: skip


@pytest.mark.parametrize(("layout", "when", "times"), CASES)
def test_a_rank_is_killed(scenes, case, layout, when, times):
    scene = scenes(**{LAYOUTS[layout]: 2}, **SMALL_STEPS)

    async def dead_and_back(rank):
        os.kill(rank, signal.SIGKILL)
        while scene.llm.state in ("ready", "stalled"):
            await scene.llm.changes()
        await scene.llm.wait_ready()

    async def work():
        started = scene.family()
        (rank,) = [pid for pid, line in started.items() if "parallel.worker" in line]
        if when == "idle":
            await dead_and_back(rank)
            assert alive(started) == []
            return
        async with scene.canaries() as canaries:
            if when == "prefill":
                await scene.in_a_prompt()
            await dead_and_back(rank)
            await canaries.sing()
        assert alive(started) == []
        assert canaries.wrong == []
        assert set(canaries.ended) == {"length", "RANK_DIED"}
        assert canaries.ended["RANK_DIED"] >= len(SONGS)  # who asks again before the engine has said so is told as well

    for _ in range(times):
        scene.forgive()
        scene.run(work())
    scene.run(scene.check_baseline())
    case("F02", times)
