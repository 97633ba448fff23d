"""A model that raises, returns nonsense or exhausts memory (F08, F09, F10): the guilty suffer, and nobody else."""

import pytest

from .support.times import TIMES

WHEN = ["prefill", "decode", "idle"]
ENDS = {
    "memory": ("F08", "OUT_OF_MEMORY"), "eat": ("F08", "OUT_OF_MEMORY"), "nan": ("F09", "NUMERICAL"),
    "inf": ("F09", "NUMERICAL"), "-inf": ("F09", "NUMERICAL"), "raise": ("F10", "MODEL_FAILED"),
    "shape": ("F10", "MODEL_FAILED"),
}  # fmt: skip


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize("what", list(ENDS))
def test_only_the_guilty_request_ends(scenes, case, what, when, times):
    """F08, F09, F10."""
    scene, (name, want) = scenes(), ENDS[what]
    pid, restarts = scene.llm.engine_pid, scene.llm.restarts

    async def guilty():
        output, code = await scene.provoke(what, "prefill" if when == "idle" else when)
        assert (output.outputs[0].finish_reason, code) == ("error", want)
        assert len(output.outputs[0].token_ids) == (when == "decode")

    async def work():
        if when == "idle":
            for _ in range(times):
                await guilty()
            return None
        async with scene.canaries() as canaries:
            for _ in range(times):
                await guilty()
        return canaries

    canaries = scene.run(work())
    scene.run(scene.check_baseline())
    assert (scene.llm.engine_pid, scene.llm.restarts) == (pid, restarts)
    assert canaries is None or canaries.are_well
    case(name, times, canary_gap=canaries and canaries.largest_gap)


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("when", ["prefill", "decode"])
def test_who_failed_once_is_tried_again(scenes, case, when, times):
    scene = scenes()

    async def work():
        async with scene.canaries() as canaries:
            for _ in range(times):
                output, _ = await scene.provoke("raise once", when)
                assert output.outputs[0].finish_reason == "length"
        return canaries

    canaries = scene.run(work())
    scene.run(scene.check_baseline())
    assert canaries.are_well
    case("F10", times, canary_gap=canaries.largest_gap)
