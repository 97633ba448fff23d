"""A rank of a divided model dies (F02): as if the engine had, with nobody left hanging in a collective."""

import os
import signal

import pytest

from .support.baseline import alive
from .support.scene import SONGS

LAYOUTS = [
    pytest.param("tensor_parallel_size", 1, id="TP"),
    pytest.param("tensor_parallel_size", 10, id="TP, 10 times", marks=pytest.mark.full),
    pytest.param("pipeline_parallel_size", 10, id="PP, 10 times", marks=pytest.mark.full),
    pytest.param("tensor_parallel_size", 50, id="TP, 50 times", marks=pytest.mark.soak),
    pytest.param("pipeline_parallel_size", 50, id="PP, 50 times", marks=pytest.mark.soak),
]


@pytest.mark.parametrize(("layout", "times"), LAYOUTS)
def test_a_rank_is_killed(scenes, case, layout, times):
    scene = scenes(**{layout: 2})

    async def work():
        started = scene.family()
        (rank,) = [pid for pid, line in started.items() if "parallel.worker" in line]
        async with scene.canaries() as canaries:
            os.kill(rank, signal.SIGKILL)
            while scene.llm.state in ("ready", "stalled"):
                await scene.llm.changes()
            await scene.llm.wait_ready()
            await canaries.sing()
        assert alive(started) == []
        return canaries

    for _ in range(times):
        scene.forgive()
        canaries = scene.run(work())
        assert canaries.wrong == []
        assert set(canaries.ended) == {"length", "RANK_DIED"}
        assert canaries.ended["RANK_DIED"] >= len(SONGS)  # who asks again before the engine has said so is told as well
    scene.run(scene.check_baseline())
    case("F02", times)
