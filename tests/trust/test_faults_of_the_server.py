"""Faults as a client of the server sees them: F01, F03, F06, F10, F15."""

import asyncio
import os
import signal
import time

import pytest

from .support.baseline import alive, family
from .support.chaos import TOKEN
from .support.client import Stream, ask, send
from .support.completions import CHAOS, FIELDS, LONG, run, started, to_the_end
from .support.server import Server
from .support.times import MORE_TIMES, TIMES, shares

DEATHS = 3
"""That a server survives within five minutes."""


@pytest.fixture(scope="module")
def server(t0, chaos_file):
    with Server(t0, *CHAOS, "--max-num-batched-tokens", "64").ready() as made:
        yield made


# --- the engine process ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", TIMES)
def test_the_engine_is_killed(t0, server, http_canaries, case, times):
    """F01: every stream ends with an error, the server says 503, and comes back by itself."""
    seconds = {"error": 0.0, "unready": 0.0, "ready": 0.0}

    async def work(server):
        async with http_canaries(server) as singing:
            killed = time.monotonic()
            os.kill(server.engine_pid, signal.SIGKILL)
            await server.until_ready(503)
            seconds["unready"] = max(seconds["unready"], time.monotonic() - killed)
            assert (await ask(server.port, "/v1/completions", {"prompt": "x"})).status == 503
            assert (await server.get("/health/live")).status == 200
            while singing.in_song:
                await asyncio.sleep(0.01)
            seconds["error"] = max(seconds["error"], time.monotonic() - killed)
            await server.until_ready()
            seconds["ready"] = max(seconds["ready"], time.monotonic() - killed)
            await singing.sing()
        assert singing.wrong == []
        assert set(singing.ended) == {"length", "engine_dead"}
        await server.until_quiet()

    if times == 1:
        run(work(server))
    else:
        for done in range(0, times, DEATHS):
            with Server(t0, *CHAOS).ready() as another:
                for _ in range(done, min(done + DEATHS, times)):
                    run(work(another))
    case("F01", times, **{f"seconds_to_{name}": value for name, value in seconds.items()})


@pytest.mark.full
def test_an_engine_that_is_killed_again_and_again_ends_the_server(t0, case):
    with Server(t0).ready() as server:
        killed = None
        for _ in range(DEATHS + 1):
            while (pid := server.engine_pid) in (None, killed):
                time.sleep(0.05)
            run(server.until_ready())
            os.kill(pid, signal.SIGKILL)
            killed = pid
        assert server.exit_code() == 1
    assert "ENGINE_DEAD" in server.text and "Traceback" not in server.text
    case("F01", DEATHS + 1)


@pytest.mark.parametrize("times", MORE_TIMES)
def test_a_model_that_always_fails_is_said_to(t0, chaos_file, case, times):
    """F10: the process that serves goes on, and tells everybody what is wrong."""
    for _ in range(times):
        with Server(t0, *CHAOS).ready() as server:

            async def work(server=server):
                following = (await started(server))[1:]
                chaos_file.write_text("raise")
                await to_the_end(following[1])
                await server.until_ready(503)
                health, refused = await server.get("/health/ready"), await ask(server.port, "/v1/completions", LONG)
                return following[0], health, refused

            try:
                stream, health, refused = run(work())
            finally:
                chaos_file.unlink(missing_ok=True)
            assert [error["code"] for error in stream.errors] == ["MODEL_FAILED"]
            assert (health.json()["code"], refused.status) == ("MODEL_FAILED", 503)
            assert server.process.poll() is None
            assert run(server.get("/health/live")).status == 200
    case("F10", times)


# --- the process that serves ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", shares(3))
@pytest.mark.parametrize("what", ["hold", *(pytest.param(each, marks=pytest.mark.full) for each in ("decode", "idle"))])
def test_the_server_is_killed(t0, chaos_file, case, what, times):
    """F03: its children end with it, also where a plugin holds the interpreter's lock and nothing stirs."""
    slowest, holding = 0.0, chaos_file.with_name("held")
    for _ in range(times):
        holding.unlink(missing_ok=True)
        with Server(t0, *CHAOS).ready() as server:

            async def work(server=server):
                if what == "decode":
                    _, _, following = await started(server)
                elif what == "hold":
                    body = FIELDS | {"prompt": [70, TOKEN["hold"]], "stream": True}
                    response = await send(server.port, "POST", "/v1/completions", body)
                    following = Stream().follow(response)
                    while not holding.exists():
                        await asyncio.sleep(0.01)
                children = family(server.process.pid)
                assert children
                server.process.kill()
                killed = time.monotonic()
                while alive(children):
                    await asyncio.sleep(0.01)
                if what != "idle":
                    await to_the_end(following)
                return time.monotonic() - killed

            slowest = max(slowest, run(work()))
    case("F03", times, seconds_to_end=slowest)


@pytest.mark.parametrize("how", ["reset", "half-close"])
@pytest.mark.parametrize(
    ("last", "times"),
    [(8, 1), pytest.param(32, 1, marks=pytest.mark.full), pytest.param(32, 4, marks=pytest.mark.soak)],
)
def test_clients_that_leave(server, http_canaries, case, how, last, times):
    """F06: while the prompt is computed (-1), or after any number of events; what they asked for is given up, and
    nobody else notices."""

    async def leave(after):
        early = {"prompt": [70 + number % 9 for number in range(900)], "max_tokens": 100} if after < 0 else {}
        response = await send(server.port, "POST", "/v1/completions", LONG | early)
        assert response.status == 200
        stream = Stream()
        following = stream.follow(response)
        while stream.events <= after:
            await anext(following)
        if how == "reset":
            response.reset()
        else:
            response.writer.write_eof()
            await to_the_end(following)
            assert stream.done == 0

    async def work():
        async with http_canaries(server) as singing:
            for after in [*range(-1, last + 1)] * times:
                await leave(after)
        assert singing.are_well
        before = (await server.stats())["tokens"]["generated"]
        await server.until_quiet()
        assert (await server.stats())["tokens"]["generated"] - before < 900
        return singing

    singing = run(work())
    case("F06", (last + 2) * times, canary_gap=singing.largest_gap)


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("load", [True, pytest.param(False, marks=pytest.mark.full)])
def test_sigterm_lets_answers_end(t0, case, load, times):
    """F15: new requests are refused at once, those there are end as they would have, and the exit is a peace."""
    for _ in range(times):
        with Server(t0, "--drain", "100").ready() as server:
            children = family(server.process.pid)

            async def work(server=server):
                streams = [await started(server, max_tokens=200) for _ in range(4 if load else 0)]
                server.signal(signal.SIGTERM)
                if load:
                    await server.until_ready(503)
                    assert (await ask(server.port, "/v1/completions", {"prompt": "x"})).status == 503
                for _, _, following in streams:
                    await to_the_end(following)
                return [stream for _, stream, _ in streams]

            for stream in run(work()):
                assert (stream.ends, stream.terminals, len(stream.token_ids.get(0, []))) == ([(0, "length")], 1, 0)
            assert server.exit_code() == 0
            assert alive(children) == []
        assert "Traceback" not in server.text
    case("F15", times)


@pytest.mark.parametrize("times", MORE_TIMES)
@pytest.mark.parametrize("drain", ["0.2", "100"])
def test_what_does_not_end_in_time_is_ended(t0, case, drain, times):
    """F15: by the end of the drain, or by a second signal; with an error that says so."""
    for _ in range(times):
        with Server(t0, "--drain", drain, "--max-num-batched-tokens", "16").ready() as server:

            async def work(server=server):
                streams = [await started(server) for _ in range(4)]
                server.signal(signal.SIGTERM)
                if drain == "100":
                    await server.until_ready(503)
                    server.signal(signal.SIGTERM)
                for _, _, following in streams:
                    await to_the_end(following)
                return [stream for _, stream, _ in streams]

            streams = run(work())
            assert server.exit_code() == 0
        for stream in streams:
            assert stream.terminals == 1
            codes = [error["code"] for error in stream.errors]
            assert stream.ends == [(0, "length")] or codes == ["server_shutdown"]
        assert "Traceback" not in server.text
    case("F15", times)


PHASES = ("listening", "start the process", "import torch", "load the model")


@pytest.mark.parametrize("times", shares(len(PHASES)))
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.full)])
@pytest.mark.parametrize("phase", [PHASES[0], *(pytest.param(phase, marks=pytest.mark.full) for phase in PHASES[1:])])
def test_a_signal_while_it_starts(t0, case, phase, number, times):
    """F15: at any phase, an end without a traceback."""
    for _ in range(times):
        with Server(t0) as server:
            if phase == "listening":
                server.wait_for("listening")
            else:
                while not any(entry.get("phase") == phase for entry in server.log) and server.process.poll() is None:
                    time.sleep(0.002)
            server.signal(number)
            code = server.exit_code()
        assert code == 0 or (number == signal.SIGINT and code == 130)
        assert "Traceback" not in server.text
    case("F15", times)
