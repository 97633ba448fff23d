"""`bench serve`: the HTTP it speaks, when it sends, and the figures it makes of what it sees."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from bestiary.bench.cli import bench
from bestiary.bench.load import png as png_module
from bestiary.bench.load.arrivals import Closed, Open
from bestiary.bench.load.chart import charts, histogram
from bestiary.bench.load.exchange import BadResponse, Connection
from bestiary.bench.load.figures import figures
from bestiary.bench.load.load import Load, Run
from bestiary.bench.load.sample import Sample
from bestiary.bench.load.work import Work
from bestiary.bench.table import table
from bestiary.serve.cli import main
from bestiary.serve.cli.chat.server import Server

from .streaming_server import END, HEAD, Tiny, chunk, event, plain, streamed

WORK = Work(model="beast", requests=12, shortest=3, longest=9, output_len=5)


def run(server: Tiny, work: Work = WORK, arrivals: Any = None, timeout: float = 60.0, url: str = "") -> Run:
    """A whole run against a server in the same loop."""

    async def both() -> Run:
        async with server.running() as there, Load(Server.at(url or there), work, timeout=timeout) as load:
            return await load.run(arrivals or Closed(3))

    return asyncio.run(both())


# --- the wire ---------------------------------------------------------------------------------------------------------


class Wire:
    """A transport that a test feeds by hand."""

    def __init__(self) -> None:
        self.sent, self.closed = b"", False

    def write(self, data: bytes) -> None:
        self.sent += data

    def abort(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


def received(pieces: list[bytes], *, closes: bool = False) -> tuple[Connection, list[bytes], Wire]:
    """A connection after a response came in these pieces; its events."""

    async def exchange() -> tuple[Connection, list[bytes], Wire]:
        wire, events = Wire(), []
        connection = Connection(lambda: 1.0)
        connection.connection_made(wire)  # type: ignore[arg-type]
        task = asyncio.create_task(connection.exchange(b"request", lambda data, now: events.append(data)))
        await asyncio.sleep(0)
        for piece in pieces:
            connection.data_received(piece)
        if closes:
            connection.connection_lost(None)
        await task
        return connection, events, wire

    return asyncio.run(exchange())


STREAM = b"".join(
    [HEAD, chunk(b": hello\n\n"), event({"a": "é\n"}), chunk(b'data: {"b"'), chunk(b": 1}\r\n\r\n"), *END]
)


@settings(max_examples=60, deadline=None)
@given(cuts=st.lists(st.integers(0, len(STREAM)), max_size=40))
def test_a_stream_may_come_in_any_pieces(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(STREAM)]
    connection, events, wire = received([STREAM[a:b] for a, b in pairwise(places)])
    assert [json.loads(each) for each in events[:2]] == [{"a": "é\n"}, {"b": 1}] and events[2:] == [b"[DONE]"]
    assert (connection.status, connection.usable, wire.sent) == (200, True, b"request")


def test_bodies_with_a_length_and_without() -> None:
    connection, events, _ = received([plain(503, {"error": 1})])
    assert (connection.status, connection.body, events, connection.usable) == (503, b'{"error": 1}', [], True)
    connection, _, _ = received([b"HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n"])
    assert (connection.status, connection.body) == (204, b"")
    connection, events, _ = received(
        [b"HTTP/1.0 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: x\n\n"], closes=True
    )
    assert events == [b"x"] and not connection.usable
    connection, _, wire = received([plain(200, {}, "connection: close")])
    assert wire.closed


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"x" * 70_000,
        b"HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n",
        HEAD + b"zz\r\n",
        HEAD + b"7fffffff\r\n",
    ],
    ids=["no http", "no status", "no end", "no length", "no size", "too large"],
)
def test_what_is_no_response_is_an_error(data: bytes) -> None:
    with pytest.raises(BadResponse):
        received([data])


@pytest.mark.parametrize("data", [b"", b"HTTP/1.1 200", HEAD + event({}), plain(200, {})[:-1]])
def test_a_connection_that_ends_in_the_middle_is_an_error(data: bytes) -> None:
    with pytest.raises(ConnectionError):
        received([data], closes=True)


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_a_closed_loop_keeps_so_many_under_way_and_uses_connections_again(endpoint: Any) -> None:
    server = Tiny()
    found = run(server, replace(WORK, endpoint=endpoint))
    assert [each.error for each in found.samples] == [None] * 12
    assert {each.output_tokens for each in found.samples} == {len(found.samples[0].pieces)} == {5}
    assert (found.most_running, server.most_open, server.connections, found.running) == (3, 3, 3, 0)
    assert server.heads[0].startswith("POST /v1/" + ("chat/completions" if endpoint == "chat" else "completions"))


def test_an_open_loop_sends_when_it_is_time_whatever_the_server_does() -> None:
    server = Tiny(gather=12)  # nobody is answered before all have asked: a closed loop would wait for ever
    found = run(server, arrivals=Open(rate=1e4, seed=1))
    assert server.most_open == found.most_running == 12
    assert [each.error for each in found.samples] == [None] * 12
    assert [each.start for each in found.samples] == pytest.approx(Open(1e4, 1).times(12))
    assert all(each.sent >= each.start for each in found.samples)


def test_arrivals_are_poisson_and_drawn_by_the_seed() -> None:
    times = Open(rate=10.0, seed=3).times(4001)
    assert times == Open(10.0, 3).times(4001) != Open(10.0, 4).times(4001)
    steps = [b - a for a, b in pairwise(times)]
    mean = sum(steps) / 4000
    spread = (sum((step - mean) ** 2 for step in steps) / 4000) ** 0.5
    assert times[0] == 0.0 and mean == pytest.approx(0.1, rel=0.06) and spread == pytest.approx(0.1, rel=0.1)


def test_prompts_are_drawn_by_the_seed_and_differ() -> None:
    work = replace(WORK, shortest=20, longest=30)
    prompts = [work.body(number)["messages"][0]["content"] for number in range(50)]
    assert prompts == [work.body(number)["messages"][0]["content"] for number in range(50)]
    assert len(set(prompts)) == 50 and {len(each.split()) for each in prompts} <= set(range(20, 31))
    ids = replace(work, endpoint="completions", vocab_size=7).body(0)["prompt"]
    assert 20 <= len(ids) <= 30 and set(ids) <= set(range(7))
    other = replace(work, ignore_eos=False, temperature=0.5, extra={"top_k": 3}).body(0)
    assert "ignore_eos" not in other and (other["temperature"], other["top_k"], other["max_tokens"]) == (0.5, 3, 5)


def test_what_fails_is_counted_by_its_cause() -> None:
    def answer(body: dict[str, Any], number: int) -> list[bytes]:
        kinds = {
            0: [plain(503, {"error": {"message": "later", "code": "QUEUE_FULL"}})],
            1: [plain(500, ["no error of OpenAI's"])],
            2: [HEAD, event({"error": {"message": "gone", "code": "engine_dead"}}), *END],
            3: [HEAD, chunk(b"data: nonsense\n\n"), *END],
            4: [HEAD, event({"choices": [{"delta": {"content": "x"}}]}), *END],
        }
        return kinds.get(number, streamed(body, number))

    found = figures(run(Tiny(answer), arrivals=Closed(1)), {})
    assert found.errors == {
        "503 QUEUE_FULL": 1, "500": 1, "stream: engine_dead": 1, "what came is no event": 1, "the stream has no end": 1,
    }  # fmt: skip
    assert (found.requests, found.completed, found.output_tokens, found.ended_by) == (12, 7, 35, {"length": 7})


def test_a_timeout_and_a_closed_door_are_failures_too() -> None:
    found = run(Tiny(delay=60), replace(WORK, requests=2), timeout=0.05)
    assert [each.error for each in found.samples] == ["timeout"] * 2
    found = run(Tiny(), replace(WORK, requests=2), url="http://127.0.0.1:9")
    assert [each.error for each in found.samples] == ["ConnectionRefusedError"] * 2


def test_a_connection_that_the_server_closed_is_replaced() -> None:
    server = Tiny(keeps=False)
    found = run(server, arrivals=Closed(1))
    assert [each.error for each in found.samples] == [None] * 12
    assert server.connections == 12


def sample(start: float, *pieces: float, sent: float | None = None, **facts: Any) -> Sample:
    end = pieces[-1] if pieces else start
    made = Sample(start, start if sent is None else sent, end, list(pieces), finish_reason="stop")
    for name, value in facts.items():
        setattr(made, name, value)
    return made


def test_the_figures_of_known_times() -> None:
    first = sample(0.0, 1.0, 1.1, 1.4, output_tokens=6, prompt_tokens=4)
    second = sample(1.0, 3.0, sent=1.5, output_tokens=1, prompt_tokens=6)
    failed = sample(1.0, error="503", end=5.0)
    found = figures(Run([first, second, failed], most_running=2, cpu=0.5), {"ttft": 1500.0, "itl": 300.0})
    assert (found.seconds, found.request_s, found.output_tokens, found.output_tok_s) == (5.0, 0.4, 7, 1.4)
    assert (found.input_tokens, found.total_tok_s, found.counted_by) == (10, 3.4, "usage")
    assert found.ttft is not None and found.ttft.p50 == 1.5  # of 1.0, and of 2.0 since it was due
    assert found.itl_ms is not None and found.itl_ms.p50 == pytest.approx(200)
    assert found.tpot_ms is not None and found.tpot_ms.p99 == pytest.approx(80)
    assert found.e2e is not None and found.e2e.p50 == pytest.approx(1.7)
    assert (found.goodput_s, found.within_limits) == (0.2, pytest.approx(1 / 3))
    assert (found.cpu_share, found.cpu_us_per_token) == (0.1, pytest.approx(0.5e6 / 7))
    assert found.late_ms == pytest.approx(490)
    unsaid = figures(Run([replace_tokens(first)]), {})
    assert (unsaid.output_tokens, unsaid.counted_by, unsaid.input_tokens, unsaid.goodput_s) == (3, "pieces", None, None)


def replace_tokens(known: Sample) -> Sample:
    return sample(known.start, *known.pieces)


# --- the command ------------------------------------------------------------------------------------------------------


@contextmanager
def served(server: Tiny) -> Iterator[str]:
    """The server in a loop of its own, as another process would be."""
    loop, ready, stop, urls = asyncio.new_event_loop(), threading.Event(), asyncio.Event(), []

    async def serve() -> None:
        async with server.running() as url:
            urls.append(url)
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    try:
        assert ready.wait(60)
        yield urls[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


COMMON = ("--num-prompts", "6", "--output-len", "4", "--warmup", "1", "--quiet")


def test_the_record(tmp_path: Path) -> None:
    output, server = tmp_path / "record.json", Tiny()
    arguments = ["--rate", "500", "--seed", "2", "--slo", "e2e=60000", "--output", str(output), "--json"]
    with served(server) as url:
        done = CliRunner().invoke(bench, ["serve", url, *COMMON, *arguments], catch_exceptions=False)
    record = json.loads(done.stdout)
    assert done.exit_code == 0 and record == json.loads(output.read_text())
    assert (record["kind"], record["model"], record["limits"]) == ("serve", "beast", {"e2e_ms": 60000})
    assert record["workload"]["arrivals"] == {"loop": "open", "rate": 500, "seed": 2}
    found = record["results"]["server"]
    assert (found["requests"], found["completed"], found["output_tokens"], found["within_limits"]) == (6, 6, 24, 1)
    assert len(server.bodies) == 7 and "127.0.0.1" not in output.read_text()
    assert "within e2e_ms 60000" in table(record)


def test_a_table_for_people_and_pictures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "run.png"
    with served(Tiny()) as url:
        arguments = ["serve", url, *COMMON, "--concurrency", "2", "--plot", "--png", str(picture)]
        done = CliRunner().invoke(bench, arguments, catch_exceptions=False)
    assert "6 of 6 answered" in done.stdout and "to the first token, ms" in done.stdout and "█" in done.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_server_that_answers_nothing_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    refusing = Tiny(lambda body, number: [plain(401, {"error": {"message": "m", "code": "invalid_api_key"}})])
    with served(refusing) as url:
        assert main.run(["bench", "serve", url, *COMMON]) == 1
        assert "401 invalid_api_key" in capsys.readouterr().err
        assert main.run(["bench", "serve", url, *COMMON, "--warmup", "0"]) == 1
    shown = capsys.readouterr().out
    assert "0 of 6 answered" in shown and "6 failed: 401 invalid_api_key" in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rate", "1", "--concurrency", "2"], "exclude each other"),
        (["--vocab-size", "9"], "--endpoint completions"),
        (["--slo", "speed=1"], "ttft, tpot, itl, e2e"),
        (["--slo", "ttft=fast"], "milliseconds"),
        (["--input-len", "9:3"], "SHORTEST:LONGEST"),
    ],
)
def test_what_does_not_go_together_is_said(arguments: list[str], words: str) -> None:
    with served(Tiny()) as url:
        done = CliRunner().invoke(bench, ["serve", url, *arguments])
    assert done.exit_code == 2 and words in done.output


def test_a_picture_without_matplotlib_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(png_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Exception, match="matplotlib") as raised:
        CliRunner().invoke(bench, ["serve", "http://127.0.0.1:9", "--png", "x.png"], catch_exceptions=False)
    assert "bestiary[plots]" in str(raised.value)


def test_pictures_of_little() -> None:
    assert charts(Run([sample(0.0, error="x", end=1.0)])) == []
    assert histogram([5.0]) == [f"{5.0:>10.1f} {'█' * 40} 1"]
    lines = histogram([float(value) for value in range(100)])
    assert sum(int(line.split()[-1]) for line in lines) == 100


def test_the_generator_imports_no_torch() -> None:
    code = "import sys, bestiary.bench.load.load, bestiary.bench.record, bestiary.bench.load.figures\n"
    code += "print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
