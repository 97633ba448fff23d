"""Canaries: streams that run while something else goes wrong, and must not notice it."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from bestiary import SamplingParams
from bestiary.api.errors import BestiaryError
from bestiary.serve.async_llm import AsyncLLM

from .client import Stream, send
from .golden import Golden
from .server import Server

_NUMBERS = itertools.count()


@dataclass(frozen=True, slots=True)
class Sung:
    """A stream so far; `end` is its finish reason, or the code of the error it ended with."""

    token_ids: list[int]
    end: str | None = None


Song = Callable[[Sequence[int]], AsyncIterator[Sung]]
"""Sends a prompt and yields what there is of the answer after every change; nothing where none was accepted yet."""


class Canaries:
    """Several streams, one after another in each of several tasks, as long as the context lasts.

    Attributes:
        ended: how many ended in which way. wrong: answers with other tokens than the oracle's.
        largest_gap: the longest that anybody waited between two tokens, in seconds.
        in_song: who has begun a song and not ended it.

    Args:
        prompts: one a canary. params: must be greedy or have a seed.
    """

    def __init__(self, song: Song, golden: Golden, prompts: Sequence[Sequence[int]], params: SamplingParams) -> None:
        self._song, self._prompts = song, prompts
        self._want = [golden.tokens(prompt, params) for prompt in prompts]
        self._tasks: list[asyncio.Task[None]] = []
        self._leaving = False
        self._heard_from = Counter[int]()
        self._heard = asyncio.Event()
        self.ended: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.largest_gap = 0.0
        self.in_song: set[int] = set()

    async def __aenter__(self) -> Canaries:
        self._tasks = [asyncio.create_task(self._sing(number)) for number in range(len(self._prompts))]
        await self.sing()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Every canary sings its song to the end."""
        self._leaving = True
        if error is None:
            await asyncio.gather(*self._tasks)
        for task in self._tasks:
            task.cancel()

    async def sing(self) -> None:
        """Until every canary has had another token."""
        before = self._heard_from.copy()
        while any(self._heard_from[number] == before[number] for number in range(len(self._prompts))):
            for task in self._tasks:
                if task.done():
                    task.result()
            self._heard.clear()
            await self._heard.wait()

    @property
    def are_well(self) -> bool:
        """Whether every song was sung to its end, with the right tokens."""
        return not self.wrong and set(self.ended) == {"length"}

    async def _sing(self, number: int) -> None:
        while not self._leaving:
            last = time.monotonic()
            async for sung in self._song(self._prompts[number]):
                now = time.monotonic()
                if sung.end in (None, "length"):
                    self.largest_gap = max(self.largest_gap, now - last)
                    self._heard_from[number] += 1
                last = now
                self._heard.set()
                self.in_song.add(number)
                if sung.end is not None:
                    self.in_song.discard(number)
                    self._check(number, sung)

    def _check(self, number: int, sung: Sung) -> None:
        want = self._want[number]
        self.ended[str(sung.end)] += 1
        if sung.token_ids != (want if sung.end == "length" else want[: len(sung.token_ids)]):
            self.wrong.append(f"{self._prompts[number]}: {sung.token_ids} instead of {want}")


def engine_song(llm: AsyncLLM, params: SamplingParams) -> Song:
    """Streams of an engine process, without HTTP."""

    async def song(prompt: Sequence[int]) -> AsyncIterator[Sung]:
        try:
            generation = llm.submit(f"canary-{next(_NUMBERS)}", prompt, params)
        except BestiaryError as error:
            if error.error_code != "ENGINE_NOT_READY":
                raise
            await llm.wait_ready()
            return
        (answer,) = generation.output.outputs
        async for output in generation:
            code = None if generation.error is None else generation.error.error_code
            yield Sung(list(answer.token_ids), (code or answer.finish_reason) if output.finished else None)

    return song


def http_song(server: Server, fields: dict[str, Any]) -> Song:
    """Streams of a server's `/v1/completions`; `fields` are a request's but the prompt."""

    async def song(prompt: Sequence[int]) -> AsyncIterator[Sung]:
        body = {"prompt": list(prompt), "stream": True, "return_token_ids": True, **fields}
        response = await send(server.port, "POST", "/v1/completions", body, server.headers)
        if response.status == 503:
            await response.read()
            await server.until_ready()
            return
        seen = Stream()
        async for _ in seen.follow(response):
            yield Sung(list(seen.token_ids.get(0, [])))
        end = seen.errors[0]["code"] if seen.errors else "cut" if seen.cut else seen.ends[0][1]
        if seen.terminals != 1:
            end = f"{seen.terminals} ends"
        yield Sung(list(seen.token_ids.get(0, [])), end)

    return song
