"""Where this process sits among the ranks, and how they meet.

Four ways to come to a seat: this process starts the other ranks of its machine (the rule); it has Ray start them,
wherever there is room; it was started by one that did; or torchrun (`external_launcher`) started all of them. Nothing
listens beyond the loopback interface unless there are several machines, and then only on the interface that leads to
`master_addr`, or to the others of the Ray cluster.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from bestiary.api.config import ParallelConfig
from bestiary.api.errors import EngineError, UsageError
from bestiary.nn.parallel.distributed import Store, dist

LOOPBACK = "127.0.0.1"
_MEETING_SECONDS = 600.0
_engines = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """One rank's place.

    Attributes:
        rank: among all ranks. starts: the ranks that this process starts, on this machine or through Ray.
        local_size: ranks on this machine, which share its cores and memory.
        path: the file in which ranks of one machine meet; None where they meet at `host`:`port`.
        hosts: whether this process keeps the meeting point; listener: its socket, where there is one already.
        prefix: tells engines that meet there apart.
        address: where this rank listens for its peers.
    """

    rank: int
    local_size: int
    starts: tuple[int, ...] = ()
    path: str | None = None
    host: str = LOOPBACK
    port: int = 0
    hosts: bool = False
    prefix: str = "bestiary"
    address: str = LOOPBACK
    listener: socket.socket | None = None

    def store(self, world_size: int) -> Store:
        """The meeting point, waited for."""
        if self.path is not None:
            return dist.PrefixStore(self.prefix, dist.FileStore(self.path, world_size))
        timeout = timedelta(seconds=_MEETING_SECONDS)
        if self.hosts:
            listener = self.listener or listen(self.host, self.port)
            kept = dist.TCPStore(
                self.host, self.port, is_master=True, wait_for_workers=False, timeout=timeout,
                master_listen_fd=listener.detach(),
            )  # fmt: skip
        else:
            kept = dist.TCPStore(self.host, self.port, is_master=False, timeout=timeout)
        return dist.PrefixStore(self.prefix, kept)

    def of(self, rank: int) -> dict[str, object]:
        """The seat of a rank that this process starts, as data."""
        return {
            "rank": rank, "local_size": self.local_size, "path": self.path, "host": self.host, "port": self.port,
            "prefix": self.prefix, "address": self.address,
        }  # fmt: skip


def device_index(seat: Seat, visible: int) -> int:
    """Which of the `visible` CUDA devices is this rank's: the only one, or that of its place on its machine.

    Raises:
        UsageError: there are several, and fewer than ranks on this machine.
    """
    if visible == 1:  # whoever started the rank has shown it its own
        return 0
    if visible < seat.local_size:
        raise UsageError(
            f"{seat.local_size} ranks of this machine need a device each", field="tensor_parallel_size",
            value=seat.local_size, limit=f"at most the CUDA devices that can be seen, {visible}",
            fix="fewer ranks, more machines (nnodes), or other CUDA_VISIBLE_DEVICES",
        )  # fmt: skip
    return seat.rank % seat.local_size


def take_seat(parallel: ParallelConfig, environ: Mapping[str, str] = os.environ) -> Seat | None:
    """This process's seat; None where it is alone.

    Raises:
        UsageError: torchrun started another number of processes than the model is divided among.
    """
    if parallel.distributed_executor_backend == "ray":
        return _for_ray(parallel)
    started = int(environ.get("WORLD_SIZE", "1")) if "RANK" in environ and "MASTER_ADDR" in environ else 1
    size = parallel.world_size_across_dp
    if size == 1:
        return None
    if started > 1:
        return _from_torchrun(environ, started, size)
    if parallel.distributed_executor_backend == "external_launcher":
        raise UsageError(
            "no launcher started this process", field="distributed_executor_backend", value="external_launcher",
            limit="RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT in the environment",
            fix=f"torchrun --nproc-per-node {size} …, or leave the argument out",
        )  # fmt: skip
    local = parallel.ranks_per_node
    first = parallel.node_rank * local
    starts = tuple(range(first + 1, first + local))
    if parallel.nnodes == 1:
        path = str(Path(tempfile.mkdtemp(prefix="bestiary-ranks-")) / "meeting")
        return Seat(rank=0, local_size=local, starts=starts, path=path)
    return Seat(
        rank=first, local_size=local, starts=starts, host=parallel.master_addr, port=parallel.master_port,
        hosts=parallel.node_rank == 0, prefix=_prefix(), address=_address_towards(parallel.master_addr),
    )  # fmt: skip


def _for_ray(parallel: ParallelConfig) -> Seat | None:
    """Where this process and the others sit is known once Ray has placed them (`ray_workers`)."""
    if parallel.nnodes > 1:
        raise UsageError(
            "Ray chooses the machines by itself", field="nnodes", value=parallel.nnodes, limit="1 with Ray",
            fix="leave nnodes out, or distributed_executor_backend=mp",
        )  # fmt: skip
    size = parallel.world_size_across_dp
    return None if size == 1 else Seat(rank=0, local_size=1, starts=tuple(range(1, size)), hosts=True)


def _from_torchrun(environ: Mapping[str, str], started: int, size: int) -> Seat:
    if started != size:
        raise UsageError(
            f"{started} processes were started, but the model is divided among {size}",
            field="tensor_parallel_size", value=size,
            limit=f"sizes whose product (tensor x pipeline x data) is WORLD_SIZE, {started}",
            fix=f"torchrun --nproc-per-node {size} …",
        )  # fmt: skip
    rank, local = int(environ["RANK"]), int(environ.get("LOCAL_WORLD_SIZE", started))
    host = environ["MASTER_ADDR"]
    kept = environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    attempt = environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return Seat(
        rank=rank, local_size=local, host=host, port=int(environ["MASTER_PORT"]), hosts=rank == 0 and not kept,
        prefix=f"{_prefix()}/{attempt}", address=LOOPBACK if local == started else _address_towards(host),
    )  # fmt: skip


def _prefix() -> str:
    """The same on every rank for its n-th engine, since all of them make the same ones."""
    global _engines
    _engines += 1
    return f"bestiary/{_engines}"


def _address_towards(host: str) -> str:
    """This machine's address on the way to `host`."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))  # sends nothing
            found: str = probe.getsockname()[0]
    except OSError as error:
        raise UsageError(
            f"there is no way to the first machine: {error}", field="master_addr", value=host,
            limit="a host name or IPv4 address that this machine reaches",
        ) from error  # fmt: skip
    return found


def listen(host: str, port: int) -> socket.socket:
    """A meeting point's socket. Raises `EngineError` where `port` of `host` is not free; 0 is whichever is."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise EngineError(
            f"the ranks cannot meet here: {error.strerror}", code="CANNOT_LISTEN", field="master_port", value=port,
            limit=f"a free port of {host}", fix="--master-port with another number",
        ) from error  # fmt: skip
    listener.listen(128)
    return listener
