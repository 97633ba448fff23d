"""`EngineProcess`: the parent's end of one engine process. It belongs to an event loop, and nothing here blocks it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from bestiary.api.errors import EngineError, UsageError
from bestiary.engine.arguments import EngineArgs
from bestiary.engine.notices import last_words
from bestiary.engine.parallel import by_hand
from bestiary.engine.parallel.frames import LONGEST, Frames, pack

from .messages import Failed, FromEngine, Launch, Quit, ToEngine, decode_from_engine, encode

_COMMAND = "from bestiary.engine.process.child import main; main({descriptor})"
_EXIT_SECONDS = 5.0
_LAST_SECONDS = 1.0
"""For the exit status of a process whose end of the socket is closed."""


class Spawned(NamedTuple):
    """A process that imports what any engine needs, and waits to be told which model; and our end of its socket."""

    process: subprocess.Popen[bytes]
    channel: socket.socket

    def discard(self) -> None:
        """Nobody will tell it anything."""
        self.channel.close()
        self.process.kill()
        self.process.wait()


def spawn() -> Spawned:
    """Raises OSError: no process can be started."""
    ours, theirs = socket.socketpair()
    try:
        with theirs:
            return Spawned(_started(theirs), ours)
    except BaseException:
        ours.close()
        raise


@contextmanager
def spawned() -> Iterator[Spawned]:
    """A process that is gone afterwards, whether somebody took it or not."""
    found = spawn()
    try:
        yield found
    finally:
        found.discard()


class EngineProcess(asyncio.Protocol):
    """A fresh interpreter at the other end of a socket pair, so nobody else can speak to it.

    If this process ends, the other reads the end of the socket and ends too, whatever it was doing.

    Attributes:
        pid: its process id.

    Args:
        take: called with every message; what it raises ends the process. gone: called once, with the reason why no
            message comes any more.
    """

    def __init__(self, take: Callable[[FromEngine], None], gone: Callable[[EngineError], None]) -> None:
        self._take, self._gone = take, gone
        self._frames = Frames()
        self._process: subprocess.Popen[bytes] | None = None
        self._transport: asyncio.WriteTransport | None = None
        self._ending: asyncio.Task[object] | None = None
        self._leaving = False

    async def start(self, args: EngineArgs, eos_token_ids: frozenset[int], spawned: Spawned | None = None) -> None:
        """Start a process, or take one that was `spawned` before, and tell it what to load.

        Raises:
            UsageError: the arguments cannot be sent to another process. OSError: no process can be started.
        """
        launch = encode(Launch(dict(_plain(args)), tuple(sorted(eos_token_ids)), *by_hand.all_of()))
        found = spawned or spawn()
        self._process = found.process
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=found.channel)
        except BaseException:
            found.channel.close()
            raise
        self._write(launch)

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def _is_over(self) -> bool:
        return self._process is None or self._process.returncode is not None

    def send(self, message: ToEngine) -> None:
        """Say something; where the process is gone, `gone` tells."""
        self._write(encode(message))

    def _write(self, frame: bytes) -> None:
        if len(frame) > LONGEST:
            raise EngineError(f"a message of {len(frame)} bytes; at most {LONGEST} are sent", code="BAD_MESSAGE")
        if self._transport is not None:
            self._transport.write(pack(frame))

    def kill(self) -> None:
        """End it now, also one that is stopped."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGKILL)

    async def close(self) -> None:
        """End it: in peace where it ends by itself in a few seconds, otherwise by force. Returns when it is gone."""
        if not self._leaving:
            self._leaving = True
            self.send(Quit())
        await self._exit_status(_EXIT_SECONDS)
        if self._transport is not None:
            self._transport.close()
        if self._ending is not None:
            await self._ending

    async def _exit_status(self, seconds: float) -> int | None:
        """Of a process that ends by itself within so many seconds, or is killed then; None where there was none."""
        process = self._process
        if process is None:
            return None
        try:
            return await asyncio.to_thread(process.wait, seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return await asyncio.to_thread(process.wait)

    # --- asyncio.Protocol -------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.WriteTransport):
            self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._frames.feed(data):
                message = decode_from_engine(frame)
                if self._leaving:
                    return
                if isinstance(message, Failed):
                    self._has_failed(message)
                else:
                    self._take(message)
        except Exception as cause:  # whatever comes of what another process says, this one goes on
            if not isinstance(cause, EngineError | ValueError):
                last_words(cause)
            self.lost(EngineError(f"what the engine process said is of no use: {cause}", code="BAD_MESSAGE"))
            self.kill()

    def _has_failed(self, message: Failed) -> None:
        """Its last word: nobody waits until it has cleared up as well."""
        self._ending = asyncio.get_running_loop().create_task(self._exit_status(_EXIT_SECONDS))
        self.lost(message.error.raised_as(EngineError))

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._ending is None and not (self._leaving and self._is_over):
            self._ending = asyncio.get_running_loop().create_task(self._explain())

    async def _explain(self) -> None:
        """Tell why it is gone. One that no longer speaks is of no use, so it ends now."""
        code = await self._exit_status(_LAST_SECONDS)
        if not self._leaving:
            self.lost(_death(self.pid, code))

    def lost(self, error: EngineError) -> None:
        """Give it up: nothing it says counts any more, and `gone` is told why, once."""
        if not self._leaving:
            self._leaving = True
            self._gone(error)


def _death(pid: int | None, code: int | None) -> EngineError:
    how = "was lost" if code is None else f"ended with exit status {code}"
    if code is not None and code < 0:
        how = f"was killed by {signal.Signals(-code).name}"
    return EngineError(
        f"the engine process {pid} {how}", code="ENGINE_DEAD", value=code,
        fix="its last words, if any, stand above; without them, look for the kernel's out-of-memory killer",
    )  # fmt: skip


def _started(theirs: socket.socket) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, *_flags(), "-c", _COMMAND.format(descriptor=theirs.fileno())],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=sys.__stderr__.fileno() if sys.__stderr__ is not None else subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        start_new_session=True,  # Ctrl-C is this process's to handle
    )


def _plain(args: EngineArgs) -> Mapping[str, Any]:
    if callable(args.hf_overrides):
        raise UsageError("a function cannot be sent to the engine process", field="hf_overrides", limit="a mapping")
    return vars(args)


def _flags() -> list[str]:
    return ["-O"] * sys.flags.optimize + [f"-W{option}" for option in sys.warnoptions]
