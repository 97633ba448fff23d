"""Sockets to listen on, made before anything else is done: a port that is taken is known at once."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bestiary.api.errors import UsageError

BACKLOG = 2048
_LISTEN = "0A"


@contextmanager
def listening(host: str, port: int, uds: Path | None) -> Iterator[socket.socket]:
    """A bound socket; a path in the file system is removed at the end.

    Raises:
        UsageError: the address is none of this machine's, or somebody has it; the error names who, where that is known.
    """
    if uds is None:
        with _bound_to_port(host, port) as bound:
            yield bound
        return
    with _bound_to_path(uds) as bound:
        try:
            yield bound
        finally:
            with suppress(FileNotFoundError):
                uds.unlink()


def _bound_to_port(host: str, port: int) -> socket.socket:
    bound: socket.socket | None = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(1)  # only this tells whether the port is taken by somebody who allows others to bind to it
    except OSError as error:
        if bound is not None:
            bound.close()
        raise _refused(host, port, error) from error
    return bound


def _refused(host: str, port: int, error: OSError) -> UsageError:
    if error.errno == errno.EADDRINUSE:
        owner = owner_of(port)
        return UsageError(
            f"port {port} is taken by {owner or 'another process'}", code="PORT_TAKEN", field="--port", value=port,
            fix="--port NUMBER, or end the other process",
        )  # fmt: skip
    if error.errno in (errno.EACCES, errno.EPERM):
        limit = "a port from 1024 on, which needs no privileges"
        return UsageError(f"cannot listen there: {error.strerror}", field="--port", value=port, limit=limit)
    return UsageError(
        f"cannot listen there: {error.strerror}", field="--host", value=host, limit="an address of this machine"
    )


def owner_of(port: int) -> str | None:
    """Who listens on a TCP port of this machine, as ``"python (pid 12)"``; None where the system does not say."""
    sockets = {f"socket:[{inode}]" for inode in _listeners(port)}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if any(os.readlink(each) in sockets for each in (process / "fd").iterdir()):
                return f"{(process / 'comm').read_text().strip()} (pid {process.name})"
    return None


def _listeners(port: int) -> Iterator[str]:
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in Path("/proc/net", table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                    yield fields[9]


def _bound_to_path(path: Path) -> socket.socket:
    _remove_stale(path)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        bound.bind(str(path))
        bound.listen(1)
    except OSError as error:
        bound.close()
        raise UsageError(f"cannot listen there: {error.strerror}", field="--uds", value=str(path)) from error
    finally:
        os.umask(before)
    return bound


def _remove_stale(path: Path) -> None:
    """Remove what a server that was killed left behind, and nothing else."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise UsageError(f"cannot listen there: {error.strerror}", field="--uds", value=str(path)) from error
    if not stat.S_ISSOCK(mode):
        raise UsageError("there is something else", field="--uds", value=str(path), limit="a path that is free")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except OSError as error:
            raise UsageError(f"cannot listen there: {error.strerror}", field="--uds", value=str(path)) from error
    raise UsageError("somebody listens there", code="PORT_TAKEN", field="--uds", value=str(path), fix="another path")
