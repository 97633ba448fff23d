"""Where a server listens: an address that is taken or wrong is an error at once, which says what to do."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from bestiary.api.errors import UsageError
from bestiary.serve.openai.listening import listening, owner_of


def refused(host="127.0.0.1", port=0, uds=None):
    with pytest.raises(UsageError) as caught, listening(host, port, uds):
        pass
    return caught.value


def test_a_port_that_is_taken_names_who_has_it():
    with listening("127.0.0.1", 0, None) as bound:
        port = bound.getsockname()[1]
        error = refused(port=port)
        assert (error.error_code, error.field, error.exit_code) == ("PORT_TAKEN", "--port", 1)
        assert f"pid {os.getpid()}" in error.message
        assert "--port" in error.fix
    with listening("127.0.0.1", port, None):
        assert f"pid {os.getpid()}" in owner_of(port)


def test_a_port_that_nobody_has():
    with listening("127.0.0.1", 0, None) as bound:
        port = bound.getsockname()[1]
    assert owner_of(port) is None


@pytest.mark.parametrize("host", ["203.0.113.9", "no-such-host.invalid", "not a host"])
def test_an_address_of_somebody_else(host):
    assert refused(host=host).field == "--host"


def test_a_stale_socket_is_taken_over(tmp_path: Path):
    path = tmp_path / "socket"
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()  # as a server that was killed leaves it
    with listening("", 0, path) as bound:
        assert bound.getsockname() == str(path)
        bound.listen()
        assert refused(uds=path).error_code == "PORT_TAKEN"
        assert path.exists()
    assert not path.exists()


def test_what_is_no_socket_stays(tmp_path: Path):
    path = tmp_path / "notes"
    path.write_text("mine")
    assert refused(uds=path).field == "--uds"
    assert path.read_text() == "mine"


def test_a_path_that_cannot_be(tmp_path: Path):
    assert refused(uds=tmp_path / "missing" / "socket").field == "--uds"
    assert refused(uds=tmp_path / ("x" * 200)).field == "--uds"
