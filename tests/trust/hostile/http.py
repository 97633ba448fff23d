"""H rows: what is hardly HTTP, whom a server believes, and which paths there are."""

from __future__ import annotations

from collections.abc import Iterator

from .row import CHAT, HOST, KEYS, TEXT, Row, chat, encoded, text

NO_HTTP, NO_KEY, NOWHERE, OTHER = (
    (400, "BAD_HTTP"),
    (401, "invalid_api_key"),
    (404, "NOT_FOUND"),
    (405, "METHOD_NOT_ALLOWED"),
)
BODY = encoded(text())
LINE = f"POST {TEXT} HTTP/1.1\r\n".encode()
HEAD = f"host: {HOST}\r\nauthorization: Bearer {KEYS[0]}\r\nconnection: close\r\n".encode()
JSON = b"content-type: application/json\r\n"


def rows() -> Iterator[Row]:
    for part in (_no_http, _large_heads, _framing, _keys, _hosts, _origins, _methods, _paths):
        yield from part()


def _raw(id_: str, data: bytes, *outcomes: tuple[int, str | None], deaf: bool = False) -> Row:
    return Row(id=id_, raw=data, outcomes=outcomes or (NO_HTTP,), deaf=deaf)


def _no_http() -> Iterator[Row]:
    for data in (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 200 + b"\r\n\r\n", b"GET /\r\n\r\n",
        b"\r\n\r\n\r\nGET\r\n\r\n",
        b"SSH-2.0-x\r\n\r\n", b"GET / HTTP/1.1\r\nhost localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n", b"G\x00T / HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: localhost\r\nx: a\x00b\r\n\r\n", b"GET  / HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", b"GET / HTTP/1.1\r\nho st: a\r\n\r\n",
        b"GET / HTTP/1.1\r\n host: localhost\r\n\r\n", b"GET / HTTP/1.1\r\n: x\r\n\r\n", b"\x00" * 500 + b"\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nhost: localhost\r\n\r\n", b"GET / FTP/1.1\r\nhost: localhost\r\n\r\n",
    ):  # fmt: skip
        yield _raw("H01", data)
    for version in ("0.9", "2.0", "1.2", "9.9"):
        yield _raw("H01", f"GET / HTTP/{version}\r\nhost: {HOST}\r\n\r\n".encode())
    yield _raw("H01", b"PRI * HTTP/2.0\r\nconnection: close\r\n\r\n", NO_KEY)


def _large_heads() -> Iterator[Row]:
    yield _raw("H01", LINE + HEAD + b"big: " + b"x" * 2**20 + b"\r\n\r\n", deaf=True)
    yield _raw("H01", LINE + HEAD + b"x" * 2**20 + b": y\r\n\r\n", deaf=True)
    yield _raw("H02", LINE + HEAD + b"".join(b"h%d: x\r\n" % n for n in range(50_000)) + b"\r\n", deaf=True)
    yield _raw("H02", LINE + HEAD + b"h: x\r\n" * 50_000 + b"\r\n", deaf=True)
    yield _raw("H02", LINE + b"".join(b"h%d: %s\r\n" % (n, b"x" * 999) for n in range(200)) + b"\r\n", deaf=True)
    yield _raw("H01", b"GET /" + b"x" * 2**20 + b" HTTP/1.1\r\n" + HEAD + b"\r\n", deaf=True)
    yield _raw("H01", b"G" * 2**20 + b" / HTTP/1.1\r\n" + HEAD + b"\r\n", deaf=True)
    yield _raw("H01", b"GET /v1/models?" + b"a=1&" * 2**18 + b" HTTP/1.1\r\n" + HEAD + b"\r\n", deaf=True)


def _framing() -> Iterator[Row]:
    """Lengths that smuggle: two of them, one and chunks, chunks that are none."""
    for lines in (b"content-length: 5\r\ncontent-length: 6\r\n", b"content-length: -1\r\n", b"content-length: 1e3\r\n",
                  b"content-length: 0x10\r\n", b"content-length: +5\r\n", b"content-length: 5, 6\r\n",
                  b"content-length: " + b"9" * 400 + b"\r\n", b"transfer-encoding: gzip\r\n",
                  b"transfer-encoding: chunked, chunked\r\n", b"transfer-encoding: chunked\r\ntransfer-encoding: x\r\n",
                  b"transfer-encoding: xchunked\r\n", b"content-length: \r\n"):  # fmt: skip
        yield _raw("H01", LINE + HEAD + JSON + lines + b"\r\n" + BODY, NO_HTTP, (501, "BAD_HTTP"))
    chunked = LINE + HEAD + JSON + b"transfer-encoding: chunked\r\n\r\n"
    for piece in (b"ZZ\r\n", b"-1\r\n", b"fffffffffffffffffffffff\r\n", b"5\r\nabcdefghij\r\n", b"\r\n\r\n"):
        yield _raw("H01", chunked + piece + b"0\r\n\r\n", NO_HTTP)


def _keys() -> Iterator[Row]:
    for value in (
        None, "", "Bearer", "Bearer ", KEYS[0], f"Basic {KEYS[0]}", f"Bearer {KEYS[0][:-1]}", f"Bearer {KEYS[0]}x",
        f"Bearer {KEYS[0].upper()}", f"Bearer {KEYS[0]}, Bearer {KEYS[0]}", "Bearer kl\xe4ger",
        "Bearer " + "x" * 50_000,
        f"Bearer {KEYS[0]}\r\nauthorization: Bearer {KEYS[0]}", f"Bearer x\r\nauthorization: Bearer {KEYS[0]}",
        f"Bearer {KEYS[0]} {KEYS[1]}", "Bearer null", "Bearer *", f'Bearer "{KEYS[0]}"', f"Token {KEYS[0]}",
    ):  # fmt: skip
        yield Row(id="H08", body=BODY, headers={"authorization": value}, outcomes=(NO_KEY,), param="authorization")
    yield Row(id="H08", body=BODY, headers={"authorization": "Bearer " + "x" * 2**20}, outcomes=(NO_HTTP,), deaf=True)
    for extra in ({"x-api-key": KEYS[0]}, {"api-key": KEYS[0]}, {"cookie": f"key={KEYS[0]}"}):
        yield Row(id="H08", body=BODY, headers={"authorization": None, **extra}, outcomes=(NO_KEY,))
    yield Row(
        id="H08", body=BODY, path=f"{TEXT}?api_key={KEYS[0]}", headers={"authorization": None}, outcomes=(NO_KEY,)
    )


def _hosts() -> Iterator[Row]:
    for host in ("localhost/health?", "localhost:8000/v1/../health", "x/v1/../health", "/health", "localhost#/health",
                 "health/live", "localhost/health/live?x="):  # fmt: skip
        headers: dict[str, str | None] = {"host": host, "authorization": "Bearer wrong"}
        yield Row(id="H05", method="GET", path="/v1/models", headers=headers, outcomes=(NO_KEY,))
    for host in ("evil.example", "localhost.evil.example", "localhost@evil.example", "127.0.0.1.evil.example:80", "",
                 "10.0.0.7", "0x7f000001", "2130706433", "localhost:x", "[::1", "localhost:8000:8000", "x" * 5000,
                 "localh\xf6st", "127.1", "0.0.0.0"):  # fmt: skip
        yield Row(id="H07", body=BODY, headers={"host": host}, outcomes=((403, "HOST_NOT_ALLOWED"),), param="host")


def _origins() -> Iterator[Row]:
    for origin in ("http://evil.example", "null", "", "http://localhost:3000", "localhost", "file://", "http://",
                   "http://localhost.evil.example", "http://evil.example http://localhost", "x" * 5000):  # fmt: skip
        denied = ((403, "ORIGIN_NOT_ALLOWED"),)
        yield Row(id="H07", body=BODY, headers={"origin": origin}, outcomes=denied, param="origin")
    wanted: dict[str, str | None] = {"origin": "http://evil.example", "access-control-request-method": "POST"}
    yield Row(id="H07", method="OPTIONS", headers=wanted, outcomes=((403, "ORIGIN_NOT_ALLOWED"),))


def _methods() -> Iterator[Row]:
    for path in (TEXT, CHAT, "/tokenize", "/v1/load_lora_adapter"):
        for method in ("GET", "OPTIONS", "HEAD", "TRACE", "DELETE", "PUT", "PATCH", "BREW", "post"):
            yield Row(
                id="H07" if method in ("DELETE", "PUT", "PATCH") else "H11", method=method, path=path, outcomes=(OTHER,)
            )
    for path in ("/v1/models", "/health/live", "/metrics", "/server/stats", "/openapi.json"):
        for method in ("POST", "DELETE", "PUT", "TRACE", "OPTIONS"):
            yield Row(id="H11", method=method, path=path, outcomes=(OTHER,))
    yield Row(id="H11", method="CONNECT", path="evil.example:443", outcomes=(NO_HTTP, NOWHERE, OTHER))


def _paths() -> Iterator[Row]:
    for path in ("//v1//models", "/v1/%2e%2e/", "/V1/models", "/v1", "/v1/nothing", "/.git/config",
                 "/v1/../etc/passwd",
                 "/%2e%2e/%2e%2e/etc/passwd", "/v1/chat/completions/", "/v1\\models", "/%00",
                 "/v1/chat%2fcompletions/x",
                 "/admin", "/docs", "/static/../../x", "/web/..%2f..%2fx", "/favicon.php", "/v1/completions%0d%0ax",
                 "/" + "a/" * 20_000, "/;/v1/models", "/*"):  # fmt: skip
        yield Row(id="H11", method="GET", path=path, outcomes=(NOWHERE,))
    yield Row(id="H11", path=CHAT + ";x", body=encoded(chat()), outcomes=(NOWHERE,))
    for path in ("http://evil.example/v1/models", "*", "v1/models"):
        yield Row(id="H11", method="GET", path=path, outcomes=(NOWHERE, NO_HTTP))
