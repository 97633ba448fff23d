"""Who may call: keys, hosts, origins, methods and paths; and that nobody reads what another wrote."""

from __future__ import annotations

import asyncio

import pytest

from bestiary.api.errors import UsageError
from bestiary.serve.openai.options import ServeOptions
from bestiary.serve.openai.routes import ENDPOINTS

from .conftest import client

KEYS = {"api_keys": ("first-key", "second-key")}
HI = {"prompt": "Hi"}


def bearer(key):
    return {"authorization": f"Bearer {key}"}


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda each: f"{each.method} {each.path}")
def test_every_endpoint_asks_for_the_key(ask, endpoint):
    path = endpoint.path.replace("{model:path}", "tiny")
    body = {} if endpoint.method == "POST" else None
    response = ask(endpoint.method, path, body, **KEYS)
    if endpoint.path.startswith("/health"):
        assert response.status_code == 200
        return
    assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")
    assert response.headers["www-authenticate"] == "Bearer"
    assert ask(endpoint.method, path, body, headers=bearer("second-key"), **KEYS).status_code != 401


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("authorization", "first-key")],
        [("authorization", "Basic first-key")],
        [("authorization", "Bearer")],
        [("authorization", "Bearer ")],
        [("authorization", "Bearer first-ke")],
        [("authorization", "Bearer first-keyx")],
        [("authorization", "Bearer FIRST-KEY")],
        [("authorization", "Bearer first-key, Bearer first-key")],
        [("authorization", "Bearer first-key"), ("authorization", "Bearer first-key")],
        [("authorization", "Bearer wrong"), ("authorization", "Bearer first-key")],
        [(b"authorization", "Bearer kläger".encode())],
        [("authorization", "Bearer " + "x" * 2**20)],
        [("x-api-key", "first-key")],
    ],
)
@pytest.mark.parametrize("path", ["/v1/models", "/nowhere", "/"])
def test_wrong_keys_open_nothing(ask, headers, path):
    response = ask("GET", path, headers=headers, web=False, **KEYS)
    assert response.status_code == 401
    assert "first" not in response.text and "x" * 20 not in response.text


def test_keys_are_compared_without_telling_how_far_they_agree(monkeypatch, ask):
    compared = []
    monkeypatch.setattr(
        "bestiary.serve.openai.security.hmac.compare_digest", lambda a, b: compared.append((a, b)) or a == b
    )
    for key in ("first-key", "x", "y" * 5000):
        ask("GET", "/v1/models", headers=bearer(key), **KEYS)
    assert len(compared) == 6  # each key with each, also after one has matched
    assert {(len(given), len(known)) for given, known in compared} == {(32, 32)}


@pytest.mark.parametrize("key", ["", "two words", "kläger", "tab\there", "new\nline"])
def test_a_key_that_no_header_can_hold_is_refused_at_the_start(key):
    with pytest.raises(UsageError):
        ServeOptions(api_keys=(key,))


@pytest.mark.parametrize("host", ["localhost/health?", "localhost:8000/v1/../health", "x/v1/../health", "/health"])
def test_a_host_is_no_way_around_the_key(ask, host):
    assert ask("GET", "/v1/models", headers={"host": host, **bearer("wrong")}, **KEYS).status_code == 401


@pytest.mark.parametrize(
    ("host", "options", "status"),
    [
        ("localhost", {}, 200),
        ("LOCALHOST:8000", {}, 200),
        ("127.0.0.1:8000", {}, 200),
        ("[::1]:8000", {}, 200),
        ("evil.example", {}, 403),
        ("localhost.evil.example", {}, 403),
        ("localhost@evil.example", {}, 403),
        ("127.0.0.1.evil.example:8000", {}, 403),
        ("", {}, 403),
        ("10.0.0.7", {}, 403),
        ("10.0.0.7:8000", {"host": "0.0.0.0"}, 200),
        ("[fe80::1]", {"host": "::"}, 200),
        ("box.lan", {"host": "0.0.0.0"}, 403),
        ("box.lan", {"host": "box.lan"}, 200),
        ("box.lan:80", {"allowed_hosts": ("Box.Lan",)}, 200),
        ("any.thing", {"allowed_hosts": ("*",)}, 200),
    ],
)
def test_hosts(ask, host, options, status):
    for path in ("/v1/models", "/health/live"):
        response = ask("GET", path, headers={"host": host}, **options)
        assert response.status_code == status
        assert status == 200 or path.startswith("/health") or response.json()["error"]["code"] == "HOST_NOT_ALLOWED"


@pytest.mark.parametrize(
    ("origin", "options", "status"),
    [
        ("http://localhost:8000", {}, 200),
        ("https://localhost:8000", {}, 200),
        ("http://evil.example", {}, 403),
        ("http://localhost:3000", {}, 403),
        ("null", {}, 403),
        ("", {}, 403),
        ("http://localhost:3000", {"cors_origins": ("http://localhost:3000",)}, 200),
        ("http://localhost:3001", {"cors_origins": ("http://localhost:3000",)}, 403),
        ("http://evil.example", {"cors_origins": ("*",)}, 200),
    ],
)
def test_origins(ask, llm, origin, options, status):
    response = ask("POST", "/v1/completions", HI, headers={"origin": origin}, **options)
    assert response.status_code == status
    assert len(llm.submitted) == (status == 200)
    granted = response.headers.get("access-control-allow-origin")
    assert granted == (origin if options and status == 200 else None)


def test_a_preflight_is_answered_for_known_origins_alone(ask):
    wanted = {"origin": "http://a.example", "access-control-request-method": "POST"}
    assert ask("OPTIONS", "/v1/completions", headers=wanted, **KEYS).status_code == 401
    granted = ask("OPTIONS", "/v1/completions", headers=wanted, cors_origins=("http://a.example",), **KEYS)
    assert granted.status_code == 204
    assert "authorization" in granted.headers["access-control-allow-headers"]


@pytest.mark.parametrize("method", ["OPTIONS", "HEAD", "TRACE", "CONNECT", "DELETE", "PUT", "PATCH", "BREW"])
@pytest.mark.parametrize("endpoint", ENDPOINTS[:4], ids=lambda each: each.path)
def test_other_methods(ask, method, endpoint):
    response = ask(method, endpoint.path)
    assert response.status_code == 405
    assert response.headers["allow"] == endpoint.method


@pytest.mark.parametrize(
    "path",
    ["//v1//models", "/v1/models/", "/v1/%2e%2e/", "/v1/%2e%2e/health/live", "/V1/models", "/v1", "/v1/nothing",
     "/.git/config"],
)  # fmt: skip
def test_paths_that_are_none(ask, path):
    response = ask("GET", path)
    assert response.status_code == 404
    assert response.json()["error"]["code"] in ("NOT_FOUND", "model_not_found")


def test_the_page_is_open_and_what_it_shows_is_not(ask):
    assert "<html" in ask("GET", "/", **KEYS).text
    assert ask("GET", "/", web=False).status_code == 404
    assert ask("GET", "/", headers={"host": "evil.example"}).status_code == 403
    for path in ("/server/info", "/server/stats", "/v1/models", "/web/nothing"):
        assert ask("GET", path, **KEYS).status_code == 401


def test_request_ids_are_the_clients_where_they_are_clean(ask):
    assert ask("GET", "/v1/models", headers={"x-request-id": "my-id.1"}).headers["x-request-id"] == "my-id.1"
    for bad in ("", "x" * 65, "a b", "a\tb", "ä".encode(), "<script>"):
        assert ask("GET", "/v1/models", headers={"x-request-id": bad}).headers["x-request-id"] != bad


def test_metrics_has_its_own_flags(ask):
    assert ask("GET", "/metrics").status_code == 200
    assert ask("GET", "/metrics", **KEYS).status_code == 401
    assert ask("GET", "/metrics", metrics_without_key=True, **KEYS).status_code == 200
    assert ask("GET", "/metrics", metrics=False).status_code == 404


def salts(llm, requests, **options):
    """The salts under which an application submits requests: (key, own salt) each."""

    async def run():
        async with client(llm, **options) as http:
            for key, own in requests:
                body = HI if own is None else HI | {"cache_salt": own}
                assert (await http.post("/v1/completions", json=body, headers=bearer(key))).status_code == 200

    asyncio.run(run())
    return [each["cache_salt"] for each in llm.submitted]


def test_tenants_do_not_share_the_prefix_cache(llm):
    pairs = [("first-key", None), ("second-key", None), ("first-key", "a"), ("second-key", "a"), ("first-key", "b")]
    found = salts(llm, pairs * 2, **KEYS)
    assert len(set(found)) == len(pairs)
    assert found[: len(pairs)] == found[len(pairs) :]
    assert not any("key" in salt or salt == "a" for salt in found)


def test_one_tenant_or_none_shares_with_itself(llm):
    assert salts(llm, [("first-key", None), ("first-key", "a")], api_keys=("first-key",)) == [None, "a"]


def test_a_salt_cannot_be_guessed_from_the_key(llm):
    first = salts(llm, [("first-key", None)], **KEYS)
    second = salts(llm, [("first-key", None)], **KEYS)[1:]
    assert first != second  # the secret is the server's, and new with each start
