"""`RayWorkers`: the other ranks as Ray actors, one each, in a placement group.

Ray places them, notices when one is lost, and ends them with this process. All else is as with local workers: this
process is rank 0; the others live the same life (`worker.live`), speak to it in the same messages, and meet it at a
TCP store of its own. Nothing of a step passes through Ray.
"""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from bestiary import __version__
from bestiary.api.config import ParallelConfig
from bestiary.api.errors import EngineError, UsageError

from .frames import send_frame
from .messages import Start, encode
from .ray_actor import RankActor, Whereabouts, whereabouts
from .ray_cluster import Places, join_cluster, leave_cluster, load_ray, reserve
from .seat import LOOPBACK, Seat, listen
from .workers import Worker, Workers

_START_SECONDS = 300.0
_PASSED_ON = ("HF_HUB_OFFLINE", "TORCH_DEVICE_BACKEND_AUTOLOAD")
_PATHS = ("model", "tokenizer", "hf_config_path", "download_dir")


class Placed(NamedTuple):
    """A rank's actor, and where it is."""

    actor: Any
    where: Whereabouts


class RayWorkers(Workers):
    """Attributes: seat: rank 0's, now that it is known where the others sit.

    Args:
        device: "cpu" or "cuda". seat: rank 0's, with the ranks to start. start: what each is told beside its seat.

    Raises:
        UsageError: Ray is missing, or this process cannot be rank 0. EngineError: the ranks could not be placed.
    """

    def __init__(self, parallel: ParallelConfig, device: str, seat: Seat, start: Mapping[str, Any]) -> None:
        self._started_cluster = join_cluster(parallel.world_size_across_dp)
        self._places: Places | None = None
        self._actors: list[Any] = []
        try:
            self._places = reserve(parallel, device, started_here=self._started_cluster)
            if device == "cuda" and self._places.reserved_here:
                _require_first_gpu(self._create(self._places, device, [0])[0].where)
            found = dict(zip(seat.starts, self._create(self._places, device, seat.starts), strict=True))
            self.seat, others = seats(seat, whereabouts(), {rank: placed.where for rank, placed in found.items()})
            told = {**start, "arguments": absolute_paths(start["arguments"])}
            workers = [_worker(rank, placed, Start(**told, seat=others[rank])) for rank, placed in found.items()]
        except BaseException:
            self._release()
            self._leave()
            raise
        super().__init__(workers)

    def kill(self) -> None:
        super().kill()
        self._release()

    def close(self) -> None:
        super().close()
        self._release()
        self._leave()

    def _create(self, places: Places, device: str, ranks: Sequence[int]) -> list[Placed]:
        """Create the actors of `ranks`, and wait until all of them run."""
        ray = load_ray()
        remote = ray.remote(max_concurrency=2)(RankActor)
        actors = [remote.options(**places.options(rank, device)).remote(environment()) for rank in ranks]
        self._actors += actors
        try:
            found = ray.get([actor.where.remote() for actor in actors], timeout=_START_SECONDS)
        except ray.exceptions.RayError as error:
            raise EngineError(
                f"Ray could not start ranks {list(ranks)}: {_first_line(error)}", code="RANK_FAILED",
                fix="Python and the packages must be the same on every machine of the cluster",
            ) from error  # fmt: skip
        other = next((where for where in found if where.version != __version__), None)
        if other is not None:
            raise EngineError(
                f"{other.address} has another version of bestiary", code="RANK_FAILED", value=other.version,
                limit=f"{__version__}, as here", fix=f"pip install bestiary=={__version__} there",
            )  # fmt: skip
        return [Placed(actor, where) for actor, where in zip(actors, found, strict=True)]

    def _release(self) -> None:
        """Give the places back."""
        actors, self._actors = self._actors, []
        places, self._places = self._places, None
        for actor in actors:
            _kill(actor)
        if places is not None:
            places.release()

    def _leave(self) -> None:
        started, self._started_cluster = self._started_cluster, False
        if started:
            leave_cluster()


class RayProcess:
    """An actor's process as `Workers` sees processes. What it says comes out of `channel`, which ends when it does."""

    def __init__(self, placed: Placed, start: Start) -> None:
        self.pid = placed.where.pid
        self.channel, self._inlet = socket.socketpair()
        self._actor = placed.actor
        self._actor.live.remote(encode(start))
        self._ear = threading.Thread(target=self._hear, name="bestiary-ray", daemon=True)
        self._ear.start()

    def kill(self) -> None:
        _kill(self._actor)

    def wait(self, timeout: float | None = None) -> None:
        """Until it has ended; how is not known."""
        self._ear.join(timeout)
        if self._ear.is_alive():
            raise subprocess.TimeoutExpired(f"actor in process {self.pid}", timeout or 0)

    def _hear(self) -> None:
        ray = load_ray()
        messages: list[bytes] = []
        with self._inlet:
            while b"" not in messages:
                try:
                    messages = ray.get(self._actor.said.remote())
                    for message in filter(None, messages):
                        send_frame(self._inlet, message)
                except (ray.exceptions.RayError, OSError):
                    return  # it is gone, or nobody listens any more: the end of the stream says so
            self.kill()


def seats(seat: Seat, own: Whereabouts, others: Mapping[int, Whereabouts]) -> tuple[Seat, dict[int, dict[str, object]]]:
    """Rank 0's seat and the others', as data. Ranks of one machine meet at its loopback interface."""
    ranks = Counter([own.node, *(where.node for where in others.values())])
    together = len(ranks) == 1
    host = LOOPBACK if together else own.address
    listener = listen(host, 0)
    first = replace(
        seat, local_size=ranks[own.node], host=host, port=listener.getsockname()[1], address=host, listener=listener
    )
    return first, {
        rank: first.of(rank) | {"local_size": ranks[where.node], "address": LOOPBACK if together else where.address}
        for rank, where in others.items()
    }


def _worker(rank: int, placed: Placed, start: Start) -> Worker:
    process = RayProcess(placed, start)
    return Worker(rank, process, process.channel, machine=placed.where.address)


def _require_first_gpu(reserved: Whereabouts) -> None:
    """The GPU that Ray reserved for rank 0, and gives to nobody else, must be the one that this process computes on."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    if reserved.gpus != (first,):
        wanted = ",".join(reserved.gpus)
        raise UsageError(
            f"Ray keeps GPU {wanted} for this process, which would compute on GPU {first}",
            field="CUDA_VISIBLE_DEVICES", value=os.environ.get("CUDA_VISIBLE_DEVICES"), limit=wanted,
            fix=f"CUDA_VISIBLE_DEVICES={wanted} in front of the command",
        )  # fmt: skip


def absolute_paths(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of an engine with absolute paths: actors do not run in this process's directory."""
    given = dict(arguments)
    for name in _PATHS:
        if isinstance(given[name], str) and Path(given[name]).expanduser().exists():
            given[name] = str(Path(given[name]).expanduser().resolve())
    return given


def environment() -> dict[str, str]:
    """The variables that every rank must see as they are here."""
    return {name: text for name, text in os.environ.items() if name in _PASSED_ON or name.startswith("BESTIARY_")}


def _kill(actor: Any) -> None:
    ray = load_ray()
    if ray.is_initialized():
        ray.kill(actor)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
