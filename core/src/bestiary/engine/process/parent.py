"""`Parent`: an engine process's way to the one that started it.

Two threads. One reads messages and puts them into a queue; the other writes, so that a parent which is slow to read
never holds up a step, and beats.
"""

from __future__ import annotations

import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from bestiary.api.errors import EngineError
from bestiary.engine.parallel.frames import LONGEST, receive_frame, send_frame
from bestiary.engine.sequence import SequenceUpdate

from .messages import Beat, FromEngine, Phase, Stepped, ToEngine, decode_to_engine, encode

BEAT_SECONDS = 0.5
_LAST_WORDS_SECONDS = 5.0


class Parent:
    """The way to the process that started this one."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._outbox: queue.SimpleQueue[FromEngine | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write, name="bestiary-writer", daemon=True)
        self.inbox: queue.SimpleQueue[ToEngine] = queue.SimpleQueue()
        self.moves = 0
        self.busy = True

    def start(self) -> None:
        threading.Thread(target=self._read, name="bestiary-reader", daemon=True).start()
        self._writer.start()

    def hear(self) -> ToEngine:
        """The next message, waited for; and whoever waits is not busy."""
        self.busy = False
        message = self.inbox.get()
        self.busy = True
        self.moves += 1
        return message

    def say(self, message: FromEngine) -> None:
        self._outbox.put(message)

    def finish(self) -> None:
        """Wait until all that was said is sent, or nobody takes it."""
        self._outbox.put(None)
        self._writer.join(_LAST_WORDS_SECONDS)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Tell how long the block took."""
        started = time.perf_counter()
        yield
        self.say(Phase(name, time.perf_counter() - started))

    def _read(self) -> None:
        """Until the parent is gone, or speaks nonsense: then this process ends, whatever its other threads do."""
        status = 1
        try:
            while (frame := receive_frame(self._channel)) is not None:
                self.inbox.put(decode_to_engine(frame))
            status = 0
        except (OSError, EngineError, ValueError) as error:
            with suppress(OSError):
                print(f"bestiary: the engine process ends: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(status)

    def _write(self) -> None:
        with suppress(OSError):  # the parent is gone, and the reader ends this process
            while True:
                try:
                    message = self._outbox.get(timeout=BEAT_SECONDS)
                except queue.Empty:
                    message = Beat(self.moves, self.busy)
                if message is None:
                    return
                for frame in _frames(message):
                    send_frame(self._channel, frame)


def _frames(message: FromEngine) -> Iterator[bytes]:
    """As one frame; updates that do not fit into one go alone, and one that does not even so is an error instead."""
    frame = encode(message)
    if len(frame) <= LONGEST or not isinstance(message, Stepped):
        yield frame
    elif len(message.updates) == 1:
        error = f"TOO_LARGE: a step's log-probabilities took {len(frame)} bytes; at most {LONGEST} can be sent"
        lost = SequenceUpdate(message.updates[0].request_id, finish_reason="error", error=error)
        yield encode(Stepped((lost,), message.stats))
    else:
        for update in message.updates:
            yield from _frames(Stepped((update,), message.stats))
