"""A real server on a real socket: what HTTP libraries would not let a client do, and how connections end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket

import pytest

from bestiary.serve.openai import protocol, sse
from bestiary.serve.openai.app import make_app
from bestiary.serve.openai.listening import listening
from bestiary.serve.openai.options import ServeOptions
from bestiary.serve.openai.running import _config, _Server

from .fake import ANSWER, Script

BODY = json.dumps({"messages": [{"role": "user", "content": "Hi"}]}).encode()
DEADLINE = 30


@contextlib.asynccontextmanager
async def served(llm, **options):
    """The port of a server over the fake model."""
    with listening("127.0.0.1", 0, None) as bound:
        server = _Server(_config(make_app(llm, ServeOptions(**options))))
        task = asyncio.create_task(server.serve([bound]))
        while not server.started:
            await asyncio.sleep(0.005)
        try:
            yield bound.getsockname()[1]
        finally:
            server.should_exit = True
            await task


def request(body=BODY, path="/v1/chat/completions", method="POST", **headers):
    lines = {"host": "localhost", "content-type": "application/json", "content-length": str(len(body)), **headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body


async def exchange(port, data):
    """Everything that comes back until the connection ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with contextlib.suppress(ConnectionError):
        writer.write(data)
        await writer.drain()
    found = b""
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(DEADLINE):
            found = await reader.read()
    writer.close()
    return found


async def until(condition):
    async with asyncio.timeout(DEADLINE):
        while not condition():
            await asyncio.sleep(0.005)


def streaming(**fields):
    return request(json.dumps(json.loads(BODY) | {"stream": True} | fields).encode())


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 100,
        b"GET /\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        request(big="x" * 2**20),
        request(path="/" + "x" * 2**20),
        b"GET / HTTP/1.1\r\n" + b"".join(b"h%d: x\r\n" % number for number in range(50_000)) + b"\r\n",
        b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\n",
    ],
    ids=["tls", "no version", "no colon", "no host", "header", "url", "headers", "lengths", "negative", "chunk"],
)
def test_what_is_no_http(llm, data, caplog):
    async def run():
        async with served(llm) as port:
            found = await exchange(port, data)
            return found, await exchange(port, request(method="GET", path="/health/live", body=b"", connection="close"))

    found, after = asyncio.run(run())
    assert after.startswith(b"HTTP/1.1 200")
    if not found:  # the server had ended the connection while the client was still sending
        assert len(data) > 2**16
        return
    head, _, body = found.partition(b"\r\n\r\n")
    assert re.match(rb"HTTP/1.1 4\d\d", head)
    assert json.loads(body)["error"]["code"] in ("BAD_HTTP", "NOT_FOUND")
    assert sum("refused" in record.getMessage() for record in caplog.records) >= 1


def test_connections_are_kept(llm):
    async def run():
        async with served(llm) as port:
            return await exchange(port, request() + request(connection="close"))

    assert asyncio.run(run()).count(b"HTTP/1.1 200") == 2


def test_a_connection_that_says_nothing_is_ended(llm, monkeypatch):
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.1)

    async def run():
        async with served(llm) as port:
            return await exchange(port, b"POST /v1/chat"), await exchange(port, request(connection="close"))

    half, whole = asyncio.run(run())
    assert half == b"" and whole.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("tokens", [0, 1, 5])
@pytest.mark.parametrize("fields", [{}, {"stream": True}, {"stream": True, "n": 2}], ids=str)
def test_who_leaves_computes_no_more(llm, fields, tokens):
    pace = asyncio.Semaphore(tokens)
    llm.script = Script(pace=pace)

    async def run():
        async with served(llm) as port:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request(json.dumps(json.loads(BODY) | fields).encode()))
            await until(lambda: llm.live and len(llm.generations[0].output.outputs[0].token_ids) == tokens)
            writer.transport.abort()
            await until(lambda: not llm.live)

    asyncio.run(run())
    assert [each.aborted for each in llm.generations] == [True]


def test_who_does_not_read_is_given_up(llm, monkeypatch):
    monkeypatch.setattr(sse, "_TICK", 0.05)
    llm.script = Script(answer="lion " * 160)  # more than the system may hold back for a connection

    async def run():
        async with served(llm, write_timeout=0.3) as port:
            raw = socket.socket()
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            raw.connect(("127.0.0.1", port))
            raw.sendall(streaming(n=64, top_logprobs=20))
            await until(lambda: llm.generations)
            await until(lambda: not llm.live)
            aborted = llm.generations[0].aborted
            raw.setblocking(True)
            received = b""
            with contextlib.suppress(ConnectionError):
                while piece := await asyncio.to_thread(raw.recv, 2**20):
                    received += piece
            raw.close()
            return aborted, received

    aborted, received = asyncio.run(run())
    assert aborted and b"[DONE]" not in received


def test_silence_is_filled_with_comments(llm, monkeypatch):
    monkeypatch.setattr(sse, "_TICK", 0.02)
    pace = asyncio.Semaphore(2)
    llm.script = Script(pace=pace)

    async def run():
        async with served(llm, heartbeat=0.05) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(streaming())
            found = b""
            async with asyncio.timeout(DEADLINE):
                while found.count(b": still working\n\n") < 3:
                    found += await reader.read(2**16)
                for _ in range(100):
                    pace.release()
                while b"[DONE]" not in found:
                    found += await reader.read(2**16)
            writer.close()
            return found

    text = asyncio.run(run()).decode()
    pieces = re.findall(r'"content":"([^"]*)"', text)
    assert "".join(pieces) == ANSWER


def test_a_socket_in_the_file_system(llm, tmp_path):
    path = tmp_path / "socket"

    async def run():
        with listening("", 0, path) as bound:
            assert path.stat().st_mode & 0o777 == 0o600
            server = _Server(_config(make_app(llm, ServeOptions())))
            task = asyncio.create_task(server.serve([bound]))
            while not server.started:
                await asyncio.sleep(0.005)
            reader, writer = await asyncio.open_unix_connection(str(path))
            writer.write(request(connection="close"))
            found = await reader.read()
            writer.close()
            server.should_exit = True
            await task
            return found

    assert asyncio.run(run()).startswith(b"HTTP/1.1 200")
    assert not path.exists()


@pytest.mark.parametrize("version", ["0.9", "1.2", "2.0", "9.9"])
def test_other_versions_of_http_are_refused(llm, version):
    async def run():
        async with served(llm) as port:
            return await exchange(port, f"GET /v1/models HTTP/{version}\r\nhost: localhost\r\n\r\n".encode())

    found = asyncio.run(run())
    assert found.startswith(b"HTTP/1.1 400") and b"BAD_HTTP" in found
