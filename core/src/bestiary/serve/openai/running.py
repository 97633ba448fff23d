"""A server from its start to its end: listen, load the model meanwhile, serve, drain."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from uvicorn import Config, Server

from bestiary.api import catalogue
from bestiary.api.errors import BestiaryError, EngineError, ModelError, ModelFailed, PluginError
from bestiary.engine.arguments import EngineArgs
from bestiary.engine.heap import give_large_buffers_back
from bestiary.engine.process.handle import Spawned
from bestiary.engine.process.messages import ModelInfo
from bestiary.engine.process.supervisor import Restart
from bestiary.serve.async_llm import AsyncLLM
from bestiary.serve.loop_watch import LoopWatch

from .app import make_app
from .listening import BACKLOG
from .options import ServeOptions
from .parsing import read_formats
from .protocol import Protocol as HttpProtocol

INTERRUPTED = 130
_FLUSH_SECONDS = 5
_KEEP_ALIVE_SECONDS = 30
_LONGEST_HEAD = 64 * 2**10
_PHASE_SECONDS = 0.1
_KINDS: Mapping[str, type[BestiaryError]] = {"model": ModelError, "weights": ModelError, "plugin": PluginError}


class Face(Protocol):
    """Who is told how far things are."""

    def listening(self) -> None: ...

    def phase(self, name: str, seconds: float) -> None: ...

    def ready(self, info: ModelInfo) -> None: ...

    def ending(self, live: int, seconds: float) -> None: ...


class Running:
    """One server. `run` returns the exit code: 0 after a signal, 130 where Ctrl-C came before the model was ready.

    Args:
        spawned: an engine process that was started before this could be made.
        drain: seconds that answers may take to their end after the first signal; a second signal ends them at once.
    """

    def __init__(
        self,
        args: EngineArgs,
        options: ServeOptions,
        face: Face,
        *,
        drain: float = 30.0,
        restart: Restart = "on-failure",
        unready_after: float = 30.0,
        spawned: Spawned | None = None,
    ) -> None:
        self._args, self._options, self._face, self._drain = args, options, face, drain
        self._engine_options: dict[str, Any] = {"restart": restart, "unready_after": unready_after}
        self._spawned = spawned
        self._signals: list[int] = []
        self._signalled = asyncio.Event()
        self._was_ready = False

    async def run(self, bound: socket.socket) -> int:
        """Serve on `bound`. Raises what the model could not be loaded for, and what its engine died of for good."""
        give_large_buffers_back()
        with self._handlers(), LoopWatch():
            start = asyncio.create_task(AsyncLLM.start(self._args, self._spawned, **self._engine_options))
            await self._first(start)
            if not start.done():
                return INTERRUPTED if signal.SIGINT in self._signals else 0
            llm = await start
            try:
                return await self._serve(llm, bound)
            finally:
                await llm.close()

    async def _serve(self, llm: AsyncLLM, bound: socket.socket) -> int:
        formats = await asyncio.to_thread(read_formats, self._args, llm.tokenizer, self._options)
        server = _Server(_config(make_app(llm, self._options, formats)))
        serving = asyncio.create_task(server.serve([bound]))
        watching = asyncio.create_task(self._watch(llm))
        self._face.listening()
        try:
            await self._first(serving, watching)
            if watching.done():
                raise _by_its_area(watching.result())
            if self._signals:
                await self._end(llm)
        finally:
            watching.cancel()
            server.should_exit = True
            await serving
        return 0 if self._was_ready or self._signals[0] != signal.SIGINT else INTERRUPTED

    async def _first(self, *tasks: asyncio.Task[Any]) -> None:
        """Until one of them is over, or a signal came."""
        signalled = asyncio.create_task(self._signalled.wait())
        await asyncio.wait({*tasks, signalled}, return_when=asyncio.FIRST_COMPLETED)
        signalled.cancel()

    async def _watch(self, llm: AsyncLLM) -> BestiaryError:
        """Tell of the engine's start; returns why it failed for good."""
        await self._starting(llm)
        while llm.state != "failed" or (self._was_ready and _is_the_models(llm.error)):
            await llm.changes()
        return llm.error or EngineError("the engine failed", code="ENGINE_FAILED")

    async def _starting(self, llm: AsyncLLM) -> None:
        told: set[str] = set()
        while llm.info is None and llm.state != "failed":
            await asyncio.sleep(_PHASE_SECONDS)
            self._tell(llm.phases, told)
        if llm.info is not None:
            self._was_ready = True
            self._face.ready(llm.info)

    def _tell(self, phases: Mapping[str, float], told: set[str]) -> None:
        for name, seconds in phases.items():
            if name not in told:
                told.add(name)
                self._face.phase(name, seconds)

    async def _end(self, llm: AsyncLLM) -> None:
        """No new requests; those that live may end, unless a second signal comes."""
        seconds = self._drain if self._was_ready else 0.0
        llm.draining = True
        self._face.ending(llm.num_live, seconds)
        self._signalled.clear()
        draining = asyncio.create_task(llm.drain(seconds))
        await self._first(draining)
        if not draining.done():
            draining.cancel()
            await llm.drain(0)

    @contextlib.contextmanager
    def _handlers(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()

        def note(number: int) -> None:
            self._signals.append(number)
            self._signalled.set()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, note, number)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)


def _is_the_models(error: EngineError | None) -> bool:
    """Whether a model that was loaded fails at everything: the server then stays, and says so to everybody."""
    return error is not None and error.error_code == ModelFailed.code


def _by_its_area(error: BestiaryError) -> BestiaryError:
    """An error that the engine process told of, as one of whose fault it is: the exit code says so too."""
    known = catalogue.find(error.error_code)
    kind = _KINDS.get("" if known is None else known.area)
    if kind is None:
        return error
    return kind(
        error.message, code=error.error_code, field=error.field, limit=error.limit, value=error.value,
        details=error.details, fix=error.fix,
    )  # fmt: skip


class _Server(Server):
    """Leaves the signals alone."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _config(app: Any) -> Config:
    return Config(
        app, http=HttpProtocol, ws="none", lifespan="off", loop="asyncio", log_config=None, access_log=False,
        server_header=False, backlog=BACKLOG, timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_FLUSH_SECONDS, h11_max_incomplete_event_size=_LONGEST_HEAD,
    )  # fmt: skip
