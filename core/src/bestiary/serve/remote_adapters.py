"""`RemoteAdapters`: the adapters of an engine in another process, and those that an engine which comes after it reads
again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from bestiary.api.errors import BadAdapter, EngineError, RequestError
from bestiary.api.lora import LoRAInfo, LoRARequest
from bestiary.engine.process.messages import Answer, DropAdapter, LoadAdapter, ModelInfo
from bestiary.engine.process.supervisor import Supervisor

_AGAIN = 0  # the number of commands that nobody waits for


class RemoteAdapters:
    """Belongs to an event loop, as the supervisor does."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._known: dict[str, LoRAInfo] = {}
        self._waiting: dict[int, asyncio.Future[LoRAInfo]] = {}

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
        number = max(self._waiting, default=_AGAIN) + 1
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
                self._supervisor.send(LoadAdapter(_AGAIN, each.name, each.path))
        self._known.update(own)

    def answered(self, answer: Answer) -> None:
        waiting = self._waiting.get(answer.number)
        if waiting is None or waiting.done():
            return
        if answer.info is not None:
            waiting.set_result(answer.info)
            return
        said = answer.error or {}
        kind = BadAdapter if said.get("code") == BadAdapter.code else RequestError
        waiting.set_exception(
            kind(
                str(said.get("message")), code=said.get("code"), field=said.get("field"), limit=said.get("rule"),
                value=said.get("value"), details=said.get("details", ()), fix=said.get("fix"),
            )
        )  # fmt: skip

    def lost(self, error: EngineError) -> None:
        """Nobody will answer."""
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(error)
