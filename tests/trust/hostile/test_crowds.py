"""Many at once, and one tenant beside another: G08, H06, H10, I02, K01."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import suppress
from types import SimpleNamespace

import psutil
import pytest

from bestiary.serve.openai.app import make_app
from bestiary.serve.openai.options import ServeOptions

from ..support.baseline import Holding
from ..support.client import LOCALHOST, ask
from .grammar import LIMIT
from .oracle import exchange, judge
from .row import CHAT, FINE, KEYS, Row, chat, encoded, text
from .stage import Report

SHED = (503, "QUEUE_FULL")
IDLE, AT_ONCE, GRAMMARS = 2000, 500, 64
MOST_GROWTH = 32 << 20
"""Bytes: who has answered hundreds at once keeps the room for as many."""


@pytest.fixture
def crowd(stage, run):
    """`crowd(rows)`: all of them at once beside canaries; a report as of a group."""

    async def work(rows):
        report, before, logged = Report(), stage.memory(), len(stage.server.log)

        async def one(number, row):
            heard = await exchange(stage.server.port, row.wire(f"crowd-{logged}-{number}"))
            report.verdicts.append(judge(row, heard))

        async with stage.canaries() as canaries:
            await asyncio.gather(*(one(number, row) for number, row in enumerate(rows)))
        await stage.finish(report, canaries, before, logged, MOST_GROWTH)
        return report

    return lambda rows: run(work(rows))


def test_more_requests_than_the_queue_holds(crowd, case):
    body = encoded({"prompt": [5, 6, 7], "max_tokens": 60, "ignore_eos": True})
    report = crowd([Row(id="H10", body=body, outcomes=(FINE, SHED), seconds=60) for _ in range(AT_ONCE)])
    assert report.wrong == [], "\n".join(report.wrong)
    found = [each.outcome for each in report.verdicts]
    assert len(found) == AT_ONCE and found.count(SHED) > 0 and found.count(FINE) >= 256
    case("H10", AT_ONCE, shed=found.count(SHED), **report.figures)


def test_connections_that_say_nothing(stage, run, case):
    """They cost descriptors and nothing else; who has something to say is heard."""

    async def work():
        before, logged, report = Holding.of(stage.server.process.pid), len(stage.server.log), Report()
        async with stage.canaries() as canaries:
            idle = []
            for number in range(IDLE):
                _, writer = await asyncio.open_connection(LOCALHOST, stage.server.port)
                if number % 2:
                    writer.write(b"POST /v1/completions HTTP/1.1\r\nhost:")
                idle.append(writer)
            heard = await exchange(stage.server.port, Row(id="H10", body=encoded(text()), outcomes=(FINE,)).wire("x"))
            for writer in idle:
                writer.transport.abort()
        await stage.finish(report, canaries, stage.memory(), logged)
        deadline = time.monotonic() + 30
        while (now := Holding.of(stage.server.process.pid)).descriptors > before.descriptors + 4:
            assert time.monotonic() < deadline, (now, before)
            await asyncio.sleep(0.05)
        return heard, report

    heard, report = run(work())
    assert heard.status == 200 and report.wrong == []
    case("H10", IDLE, seconds_to_an_answer_beside_them=round(heard.seconds, 3), **report.figures)


def test_costly_grammars_at_once(stage, crowd, case):
    """Beside the canaries there is a conversation, whose template is rendered in a process of its own too."""
    before = Holding.of(stage.server.process.pid)
    costly = [f"(a{{1,{900 + number}}}){{1,{1000 - number}}}" for number in range(GRAMMARS)]
    rows = [
        Row(id="G08", body=encoded(text(guided_regex=each)), outcomes=(LIMIT, FINE, SHED), seconds=60)
        for each in costly
    ]
    other = Row(id="G08", path=CHAT, body=encoded(chat()), outcomes=(FINE,), seconds=3)
    report = crowd([*rows, other])
    assert report.wrong == [], "\n".join(report.wrong)
    after = Holding.of(stage.server.process.pid)
    assert after.threads <= before.threads + 8 and after.descriptors <= before.descriptors + 8
    assert sum("structured" in " ".join(each.cmdline()) for each in psutil.Process().children(True)) <= 1
    beside = next(each.heard.seconds for each in report.verdicts if each.row is other)
    case("G08", GRAMMARS, seconds_of_a_conversation_beside_them=round(beside, 3), **report.figures)


def paths():
    """Every path of the application, from its own router."""
    llm = SimpleNamespace(args=SimpleNamespace(model="x"), list_loras=list)
    app = make_app(llm, ServeOptions(api_keys=KEYS))
    return [(route.path.replace("{model:path}", "t0"), sorted(route.methods)[0]) for route in app.routes]


def test_every_route_wants_a_key(stage, run, case):
    """All but health, and the page's own files, which hold nothing."""
    found = paths()
    assert len(found) > 15
    denied = ((401, "invalid_api_key"),)
    closed = ("/v1", "/server", "/tokenize", "/detokenize", "/metrics", "/openapi")
    rows = [
        Row(id="H06", method=method, path=path, headers={"authorization": key}, outcomes=denied)
        for path, method in found if path.startswith(closed) for key in (None, "Bearer wrong")
    ]  # fmt: skip
    rest = {path for path, _ in found} - {row.path for row in rows}
    assert all(path.startswith("/health") or "." in path or path == "/" for path in rest), rest
    report = run(stage.run(rows))
    assert report.wrong == [], "\n".join(report.wrong)
    case("H06", len(rows))


def test_one_tenants_cache_tells_another_nothing(stage, run, case):
    """K01: cached tokens are reported to who put them there, and to nobody else."""

    async def cached(key, prompt, **fields):
        body = {"prompt": prompt, "max_tokens": 1, **fields}
        headers = {"authorization": f"Bearer {key}", "host": "localhost"}
        answer = await ask(stage.server.port, "/v1/completions", body, headers=headers)
        assert answer.status == 200
        return answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]

    async def work():
        for number in range(8):
            prompt = [10 + number] * 100
            for salt in ({}, {"cache_salt": "shared"}):
                assert await cached(KEYS[0], prompt, **salt) == 0
                assert await cached(KEYS[1], prompt, **salt) == 0
                assert await cached(KEYS[0], prompt, **salt) > 0
                assert await cached(KEYS[1], prompt, **salt) > 0
            assert await cached(KEYS[0], prompt, cache_salt="other") == 0

    run(work())
    case("K01", 8 * 9)


def test_only_the_port_listens(stage, case):
    """I02, I03: the engine is at the other end of a socketpair, which has no name that anybody could connect to."""
    processes = [psutil.Process(stage.server.process.pid), *psutil.Process(stage.server.process.pid).children(True)]
    listening = [each for one in processes for each in one.net_connections("all") if each.status == psutil.CONN_LISTEN]
    assert [(each.laddr.ip, each.laddr.port) for each in listening] == [(LOCALHOST, stage.server.port)]
    named = [each.laddr for one in processes for each in one.net_connections("unix") if each.laddr]
    assert named == []
    case("I02", len(processes))
    case("I03", len(processes))


@pytest.mark.parametrize("given", [b"", b"GET", b"POST /v1/completions HTTP/1.1\r\n", b"\r\n"])
def test_who_leaves_in_the_middle_of_a_head_is_forgotten(stage, run, case, given):
    async def work():
        for _ in range(20):
            _, writer = await asyncio.open_connection(LOCALHOST, stage.server.port)
            with suppress(ConnectionError):
                writer.write(given)
                await writer.drain()
            writer.transport.abort()
        return await stage.server.get("/health/live")

    assert json.loads(run(work()).body)["status"]
    case("H10", 20)
