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
        with LoopWatch(0.4) as watch:
            await hangs_here(watch)
            return watch

    watch = asyncio.run(run())
    assert watch.longest >= 0.4
    assert caplog.text.count("in hangs_here") == 1


def test_a_loop_that_turns_is_left_alone(caplog):
    async def run():
        with LoopWatch(30.0) as watch:
            await asyncio.sleep(0.05)
            return watch

    assert asyncio.run(run()).blocked == 0
    assert caplog.text == ""
