"""A scene: an engine process, the oracle beside it, and canaries, on an event loop that outlives one test."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from bestiary.api.outputs import RequestOutput
from bestiary.engine.arguments import EngineArgs
from bestiary.serve.async_llm import AsyncLLM
from bestiary.serve.generation import Generation

from .baseline import Holding, family
from .canaries import Canaries, engine_song
from .chaos import HARMLESS, OVERRIDES, provoking
from .golden import Golden

T = TypeVar("T")
_NUMBERS = itertools.count()
PATIENCE = 240.0
"""Seconds after which a test that waits has failed: nothing here takes a tenth of it on an idle machine."""
SONGS = [[40 + number, 41, 42 + 3 * number, 43][: 2 + number % 3] for number in range(8)]
LONG = [70 + number % 9 for number in range(900)]
SMALL_STEPS = {"max_num_batched_tokens": 16}
"""So that `LONG` takes many steps beside the songs, and there is a time in the middle of it."""
PLAIN = {"dtype": "float32", "progress": False, "hf_overrides": OVERRIDES, "num_gpu_blocks_override": 256}


@dataclass
class Scene:
    """One engine process (and those after it) with the chaos plugin, and what it held when it was new.

    others: processes that were there before, and are other tests'.
    """

    llm: AsyncLLM
    golden: Golden
    runner: asyncio.Runner
    others: frozenset[int] = frozenset()
    before: Holding = field(init=False)

    @classmethod
    def open(cls, model: Path, golden: Golden, *, unready_after: float = 30.0, **options: Any) -> Scene:
        runner, others = asyncio.Runner(), frozenset(family())
        args = EngineArgs.make(str(model), PLAIN | options)
        llm = runner.run(AsyncLLM.start(args, unready_after=unready_after))
        scene = cls(llm, golden, runner, others)
        scene.run(llm.wait_ready())
        scene.run(scene.ask(SONGS[0]))  # threads that the first request starts belong to the baseline
        scene.before = Holding.of()
        return scene

    def close(self) -> None:
        self.run(self.llm.close())
        self.runner.close()

    def family(self) -> dict[int, str]:
        """Its living processes: id → command line."""
        return {pid: line for pid, line in family().items() if pid not in self.others}

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(asyncio.wait_for(work, PATIENCE))

    def forgive(self) -> None:
        """Forget earlier deaths: the next is followed by a restart, and at once."""
        self.llm._supervisor._deaths.clear()

    def canaries(self) -> Canaries:
        return Canaries(engine_song(self.llm, HARMLESS), self.golden, SONGS, HARMLESS)

    async def ask(self, prompt: Sequence[int]) -> RequestOutput:
        return await self.llm.submit(f"ask {prompt}", prompt, HARMLESS).wait()

    async def in_a_prompt(self) -> tuple[Generation, list[int]]:
        """Until the engine is in the middle of a long prompt that no cache has, in `SMALL_STEPS` beside canaries; the
        request, and the prompt. Where this process was away for so long that the prompt is over, another is tried."""
        while True:
            prompt = [40 + next(_NUMBERS) % 400, *LONG]
            before = self.llm.stats().tokens
            long = self.llm.submit("long", prompt, HARMLESS)
            while self.llm.stats().tokens < before + len(LONG) // 4:
                await asyncio.sleep(0.001)
            if not long.output.outputs[0].token_ids:
                return long, prompt
            await long.wait()

    async def provoke(self, what: str, when: str) -> tuple[RequestOutput, str]:
        """Send a request that provokes; its output, and the code of the error it ended with."""
        generation = self.llm.submit("guilty", *provoking(what, when))
        output = await generation.wait()
        return output, "" if generation.error is None else generation.error.error_code

    async def check_baseline(self) -> None:
        """Everything that was held for requests is free, and the engine answers as it did at first."""
        assert self.llm.num_live == 0
        output = await self.ask(SONGS[1])
        assert output.outputs[0].token_ids == self.golden.tokens(SONGS[1], HARMLESS)
        assert self.llm.stats().used_blocks == self.llm.stats().running == self.llm.stats().waiting == 0
        now = Holding.of()
        assert now.descriptors <= self.before.descriptors
        assert now.threads <= self.before.threads + 2, "more threads than the first request and one restart started"
        engines = [line for line in self.family().values() if "engine.process.child" in line]
        assert len(engines) == 1
