"""A loop that hangs is noticed from outside, with the place where it hangs."""

import asyncio
import threading

from bestiary.serve.loop_watch import LoopWatch


def test_a_blocked_loop_is_told_of_once_with_its_stack(caplog):
    async def hangs_here(watch):
        pause = threading.Event()
        while not watch.blocked:  # blocks the loop, as a defect would
            pause.wait(0.01)

    async def run():
        with LoopWatch(0.05) as watch:
            await asyncio.sleep(0.2)
            assert watch.blocked == 0
            await hangs_here(watch)
            await asyncio.sleep(0.1)
            return watch

    watch = asyncio.run(run())
    assert watch.blocked == 1 and watch.longest >= 0.05
    assert "hangs_here" in caplog.text


def test_a_loop_that_turns_is_left_alone(caplog):
    async def run():
        with LoopWatch(30.0) as watch:
            await asyncio.sleep(0.05)
            return watch

    assert asyncio.run(run()).blocked == 0
    assert caplog.text == ""
