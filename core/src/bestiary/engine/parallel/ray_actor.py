"""What runs in the process that Ray starts for a rank: the worker's life, and what it says.

Nothing heavy is imported before `RankActor` has set the environment, since torch reads parts of it only once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from queue import SimpleQueue
from typing import NamedTuple


class Whereabouts(NamedTuple):
    """Where Ray put a rank. address: of its machine, as other machines of the cluster reach it. gpus: their ids."""

    pid: int
    node: str
    address: str
    gpus: tuple[str, ...]
    version: str


class RankActor:
    """An actor with two threads: one lives the rank's life, the other hands out what it says.

    What goes in and out are bytes, encoded by `messages`; the rest is numbers and text.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        os.environ.update(environ)
        os.dup2(2, 1)  # Ray shows what ranks print; the first rank's standard output is not theirs
        self._said: SimpleQueue[bytes] = SimpleQueue()

    def where(self) -> Whereabouts:
        return whereabouts()

    def live(self, start: bytes) -> None:
        """Be a rank until the engine is closed, or until it fails, which is among what it says."""
        from .messages import decode_start
        from .worker import Parent, live

        try:
            live(decode_start(start), Parent(self._said.put))
        finally:
            self._said.put(b"")

    def said(self) -> list[bytes]:
        """Messages since the last call, waited for; an empty one follows the last."""
        messages = [self._said.get()]
        while not self._said.empty():
            messages.append(self._said.get())
        return messages


def whereabouts() -> Whereabouts:
    """Those of the calling process."""
    import ray

    from bestiary import __version__

    gpus = tuple(str(each) for each in ray.get_gpu_ids())
    node = ray.get_runtime_context().get_node_id()
    return Whereabouts(os.getpid(), node, ray.util.get_node_ip_address(), gpus, __version__)
