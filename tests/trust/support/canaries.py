"""Canaries: streams that run while something else goes wrong, and must not notice it."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Sequence
from types import TracebackType

from bestiary import SamplingParams
from bestiary.api.errors import BestiaryError
from bestiary.api.outputs import RequestOutput
from bestiary.serve.async_llm import AsyncLLM

from .golden import Golden

_NUMBERS = itertools.count()


class Canaries:
    """Several streams, one after another in each of several tasks, as long as the context lasts.

    Attributes:
        ended: how many ended in which way: finish reasons, and codes of errors. wrong: answers with other tokens than
            the oracle's. largest_gap: the longest that anybody waited between two tokens, in seconds.

    Args:
        prompts: one a canary. params: must be greedy or have a seed.
    """

    def __init__(self, llm: AsyncLLM, golden: Golden, prompts: Sequence[Sequence[int]], params: SamplingParams) -> None:
        self._llm, self._params = llm, params
        self._prompts = prompts
        self._want = [golden.tokens(prompt, params) for prompt in prompts]
        self._tasks: list[asyncio.Task[None]] = []
        self._leaving = False
        self._tokens = Counter[int]()
        self._heard = asyncio.Event()
        self.ended: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.largest_gap = 0.0

    async def __aenter__(self) -> Canaries:
        self._tasks = [asyncio.create_task(self._sing(number)) for number in range(len(self._prompts))]
        await self.sing()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Every canary sings its song to the end."""
        self._leaving = True
        await asyncio.gather(*self._tasks)

    async def sing(self) -> None:
        """Until every canary has had another token."""
        before = self._tokens.copy()
        while any(self._tokens[number] == before[number] for number in range(len(self._prompts))):
            self._heard.clear()
            await self._heard.wait()

    async def _sing(self, number: int) -> None:
        while not self._leaving:
            name = f"canary-{number}-{next(_NUMBERS)}"
            try:
                generation = self._llm.submit(name, self._prompts[number], self._params)
            except BestiaryError as error:
                if error.error_code != "ENGINE_NOT_READY":
                    raise
                await self._llm.wait_ready()
                continue
            last = time.monotonic()
            async for _ in generation:
                now = time.monotonic()
                self.largest_gap, last = max(self.largest_gap, now - last), now
                self._tokens[number] += 1
                self._heard.set()
            self._check(number, generation.output, None if generation.error is None else generation.error.error_code)

    def _check(self, number: int, output: RequestOutput, code: str | None) -> None:
        (answer,) = output.outputs
        want = self._want[number]
        self.ended[code or str(answer.finish_reason)] += 1
        whole = answer.finish_reason == "length"
        if answer.token_ids != (want if whole else want[: len(answer.token_ids)]):
            self.wrong.append(f"{output.request_id}: {answer.token_ids} instead of {want}")
