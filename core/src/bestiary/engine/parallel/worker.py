"""A rank that another process started: build, load, follow rank 0, end with it."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from bestiary.api.errors import BestiaryError, EngineError
from bestiary.api.registry import ModelRegistry
from bestiary.engine.arguments import EngineArgs
from bestiary.engine.stderr import never_fail_stderr
from bestiary.nn.parallel.distributed import TorchGroup

from .frames import receive_frame, send_frame
from .messages import Beat, Failed, FromWorker, Ready, Start, Trouble, decode_start, encode
from .seat import Seat
from .workers import BEAT_SECONDS, SYMPTOMS


class Parent:
    """The way to the process that started this one, which reads nothing but typed messages from it.

    Args:
        send: takes one encoded message.
    """

    def __init__(self, send: Callable[[bytes], None]) -> None:
        self._send = send
        self._lock = threading.Lock()
        self.engine: Any = None

    def say(self, message: FromWorker) -> None:
        with self._lock:
            self._send(encode(message))

    def start_beating(self) -> None:
        threading.Thread(target=self._beat, name="bestiary-beat", daemon=True).start()

    def _beat(self) -> None:
        pause = threading.Event()
        while True:
            self.say(Beat(0 if self.engine is None else self.engine.team.ticks, TorchGroup.waiting > 0))
            pause.wait(BEAT_SECONDS)


def main(descriptor: int) -> None:
    """The whole life of a local worker, at the other end of socket `descriptor`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    never_fail_stderr()
    channel = socket.socket(fileno=descriptor)
    frame = receive_frame(channel)
    if frame is None:
        sys.exit(0)

    def send(message: bytes) -> None:
        with suppress(OSError):  # the parent is gone; `_watch` ends this process
            send_frame(channel, message)

    threading.Thread(target=_watch, args=[channel], name="bestiary-parent", daemon=True).start()
    os._exit(live(decode_start(frame), Parent(send)))  # neither torch's threads nor a plugin's may keep it alive


def _watch(channel: socket.socket) -> None:
    """Nothing more is ever said to this process: bytes that can be read are the end of the stream."""
    try:
        channel.recv(1)
    finally:
        os._exit(0)  # whatever the other threads wait for


def live(start: Start, parent: Parent) -> int:
    """Be the rank that `start` describes, until rank 0 closes the engine. Returns the exit status: 0 after a peace."""
    logging.getLogger("bestiary").setLevel(logging.ERROR)  # rank 0 says it for all
    parent.start_beating()
    try:
        _run(start, parent)
    except BestiaryError as error:
        if error.error_code != "CLOSED":
            return _fail(parent, error, error)
    except BaseException as cause:
        return _fail(parent, EngineError(f"{type(cause).__name__}: {cause}", code="RANK_FAILED"), cause)
    return 0


def _run(start: Start, parent: Parent) -> None:
    from bestiary.engine.build import EngineBuilder

    for architecture, model in start.models.items():
        ModelRegistry.register_model(architecture, model)
    given = dict(start.arguments)
    if (data := start.config_data) is not None:
        given["hf_overrides"] = lambda _: data
    arguments = EngineArgs(**given)
    builder = EngineBuilder(arguments, seat=Seat(**start.seat), on_built=lambda: parent.say(Ready()))
    engine = builder.build(frozenset(start.eos_token_ids))
    parent.engine = engine
    engine.follow()


def _fail(parent: Parent, error: BestiaryError, cause: BaseException) -> int:
    """Tell the parent, and, unless this rank only lost another, whoever reads the standard error."""
    if error.error_code not in SYMPTOMS:
        traceback.print_exception(cause, file=sys.stderr)
    parent.say(Failed(Trouble.of(error)))
    return 1
