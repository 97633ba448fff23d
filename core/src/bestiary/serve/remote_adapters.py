"""`RemoteAdapters`: the adapters of an engine in another process, and those that an engine which comes after it reads
again."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

from bestiary.api.errors import BadAdapter, EngineError, RequestError
from bestiary.api.lora import LoRAInfo, LoRARequest
from bestiary.engine.notices import notice
from bestiary.engine.process.messages import Answer, DropAdapter, LoadAdapter, ModelInfo
from bestiary.engine.process.supervisor import Supervisor


class RemoteAdapters:
    """Belongs to an event loop, as the supervisor does."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._known: dict[str, LoRAInfo] = {}
        self._waiting: dict[int, asyncio.Future[LoRAInfo]] = {}
        self._again: dict[int, str] = {}  # those that another engine was told to read
        self._numbers = itertools.count()

    def infos(self) -> list[LoRAInfo]:
        """Those that requests may name, by name."""
        return [self._known[name] for name in sorted(self._known)]

    def request(self, name: str | None) -> LoRARequest | None:
        """What a request that names an adapter asks for. Raises `RequestError`: there is none of this name."""
        if name is not None and name not in self._known:
            raise RequestError("there is no such adapter", code="UNKNOWN_ADAPTER", field="model", value=name)
        return None if name is None else LoRARequest(name)

    async def add(self, name: str, path: str) -> LoRAInfo:
        """Have it read, checked and kept. Raises `BadAdapter`, `RequestError`."""
        info = await self._command(lambda number: LoadAdapter(number, name, path))
        self._known[name] = info
        return info

    async def remove(self, name: str) -> LoRAInfo:
        """Have it forgotten. Raises `RequestError`: there is none of this name, or a request wants it."""
        info = await self._command(lambda number: DropAdapter(number, name))
        self._known.pop(name, None)
        return info

    async def _command(self, make: Callable[[int], LoadAdapter | DropAdapter]) -> LoRAInfo:
        number = next(self._numbers)
        answer: asyncio.Future[LoRAInfo] = asyncio.get_running_loop().create_future()
        self._supervisor.send(make(number))
        self._waiting[number] = answer
        try:
            return await answer
        finally:
            del self._waiting[number]

    # --- what the engine says ---------------------------------------------------------------------------------------

    def loaded(self, info: ModelInfo) -> None:
        """An engine is there, the first or another: adapters that were added meanwhile are read again."""
        own = {each.name: each for each in info.adapters}
        for each in self.infos():
            if each.name not in own:
                number = next(self._numbers)
                self._again[number] = each.name
                self._supervisor.send(LoadAdapter(number, each.name, each.path))
        self._known.update(own)

    def answered(self, answer: Answer) -> None:
        name = self._again.pop(answer.number, None)
        if name is not None and answer.error is not None:
            self._known.pop(name, None)
            notice(f"adapter {name} is gone, for the new engine process refused it: {answer.error.message}")
        waiting = self._waiting.get(answer.number)
        if waiting is None or waiting.done():
            return
        if answer.info is not None:
            waiting.set_result(answer.info)
        elif answer.error is not None:
            kind = BadAdapter if answer.error.code == BadAdapter.code else RequestError
            waiting.set_exception(answer.error.raised_as(kind))

    def lost(self, error: EngineError) -> None:
        """Nobody will answer."""
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(error)
        self._again.clear()
