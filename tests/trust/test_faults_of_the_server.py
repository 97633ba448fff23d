"""Faults as a client of the server sees them: F01, F03, F06, F10, F12, F13, F15, F16, F17."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from .support.baseline import Holding, alive, family
from .support.canaries import Canaries, http_song
from .support.chaos import HARMLESS, TOKEN, as_fields
from .support.client import Stream, ask, send
from .support.meddled import BLOCKED_SECONDS
from .support.scene import PATIENCE, SONGS
from .support.server import Server
from .support.times import MORE_TIMES, TIMES, shares

FIELDS = as_fields(HARMLESS)
LONG = FIELDS | {"prompt": SONGS[0], "stream": True, "max_tokens": 900}
CHAOS = ("--hf-overrides", '{"architectures": ["ChaosForCausalLM"]}')
DEATHS = 3
"""That a server survives within five minutes."""


def run(work):
    return asyncio.run(asyncio.wait_for(work, PATIENCE))


@pytest.fixture(scope="module")
def server(t0, chaos_file):
    with Server(t0, *CHAOS, "--max-num-batched-tokens", "64").ready() as made:
        yield made


@pytest.fixture(scope="module")
def canaries(golden):
    """`canaries(server)`: eight streams over HTTP."""
    return lambda server: Canaries(http_song(server, FIELDS), golden, SONGS, HARMLESS)


async def started(server, **fields):
    """A stream that has had its first event."""
    response = await send(server.port, "POST", "/v1/completions", LONG | fields)
    assert response.status == 200
    stream = Stream()
    following = stream.follow(response)
    await anext(following)
    return response, stream, following


async def to_the_end(following):
    async for _ in following:
        pass


# --- the engine process ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", TIMES)
def test_the_engine_is_killed(t0, server, canaries, case, times):
    """F01: every stream ends with an error, the server says 503, and comes back by itself."""
    seconds = {"error": 0.0, "unready": 0.0, "ready": 0.0}

    async def work(server):
        async with canaries(server) as singing:
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
        for _ in range(DEATHS + 1):
            while server.engine_pid is None:
                time.sleep(0.05)
            pid = server.engine_pid
            run(server.until_ready())
            os.kill(pid, signal.SIGKILL)
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
def test_clients_that_leave(server, canaries, case, how, last, times):
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
        async with canaries(server) as singing:
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


# --- what surrounds it ----------------------------------------------------------------------------------------------


def refused(t0, *options):
    """Exit code and standard error of a server that does not start."""
    command = [sys.executable, "-m", "bestiary", "serve", str(t0), *options]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, env=environment, check=False)
    return done.returncode, done.stderr


@pytest.mark.parametrize("times", TIMES)
def test_a_port_that_is_taken(t0, case, times):
    """F16: the message names who has it, and the option."""
    for _ in range(times):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            code, said = refused(t0, "--port", str(taken.getsockname()[1]))
        assert code == 1 and "PORT_TAKEN" in said and f"pid {os.getpid()}" in said and "--port" in said
        assert "Traceback" not in said
    case("F16", times)


@pytest.mark.full
def test_addresses_that_are_not_there(t0, case):
    for host in ("192.0.2.1", "2001:db8::1", "no.such.name.invalid"):
        code, said = refused(t0, "--host", host, "--port", "0")
        assert code == 1 and "--host" in said and "Traceback" not in said
    case("F16", 3)


def test_a_unix_socket_that_somebody_left(t0, tmp_path, case):
    """F16: one that nobody listens on is replaced; one that somebody does, or what is no socket, is not."""
    stale, used, other = tmp_path / "stale", tmp_path / "used", tmp_path / "other"
    with socket.socket(socket.AF_UNIX) as dead, socket.socket(socket.AF_UNIX) as living:
        dead.bind(str(stale))
        dead.close()
        living.bind(str(used))
        living.listen()
        other.write_text("a file")
        for path in (used, other):
            code, said = refused(t0, "--uds", str(path))
            assert code == 1 and "--uds" in said and "Traceback" not in said
            assert path.exists()
    with Server(t0, "--uds", str(stale)) as server:
        server.wait_for("listening")
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(stale))
        assert stale.stat().st_mode & 0o777 == 0o600
        server.signal(signal.SIGTERM)
        assert server.exit_code() == 0
    assert not stale.exists()
    case("F16", 3)


FULL = pytest.mark.full


@pytest.mark.parametrize("log", [">/dev/full", pytest.param(">log", marks=FULL), pytest.param(">&-", marks=FULL)])
def test_a_log_that_cannot_be_written(t0, case, log, tmp_path):
    """F12: the disk is full, or a quota is used up (not one byte may be written to files), or the log is closed."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    script = f'ulimit -f 0; exec "$@" 2{log}'
    command = [sys.executable, "-m", "bestiary", "serve", str(t0), "--port", str(port), "--dtype", "float32"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        ["sh", "-c", script, "sh", *command],
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        env=environment,
        cwd=tmp_path,
    ) as process:
        assert process.stdout.readline()  # the URL: it listens

        async def work():
            while (await ask(port, "/health/ready")).status != 200:
                await asyncio.sleep(0.02)
            found = [await ask(port, "/v1/completions", {"prompt": prompt, "max_tokens": 2}) for prompt in ("Hi", "")]
            form = {"prompt": "Hi", "max_tokens": 2, "guided_regex": "a+"}
            return [*found, await ask(port, "/v1/completions", form)]

        try:
            assert [each.status for each in run(work())] == [200, 400, 200]
            process.terminate()
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()
    case("F12")


def test_too_few_descriptors_to_start_with(t0, case):
    """F13: no defect of ours, and the limit is named."""
    command = ["sh", "-c", 'ulimit -n 12; exec "$@"', "sh", sys.executable, "-m", "bestiary", "serve", str(t0)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, env=environment, check=False)
    assert done.returncode == 1 and "SYSTEM_LIMIT" in done.stderr and "ulimit -n" in done.stderr
    assert "Traceback" not in done.stderr and "internal error" not in done.stderr
    case("F13")


@pytest.mark.parametrize("times", MORE_TIMES)
def test_no_home(t0, golden, case, times):
    """F12: nothing needs to be written."""
    nowhere = {"HOME": "/proc/nowhere", "XDG_CACHE_HOME": "/proc/nowhere", "XDG_CONFIG_HOME": "/proc/nowhere"}
    for number in range(times):
        environment = dict.fromkeys(nowhere) if number % 2 else nowhere
        with Server(t0, environment=environment).ready() as server:
            body = FIELDS | {"prompt": SONGS[0], "return_token_ids": True}
            answer = run(ask(server.port, "/v1/completions", body))
            assert answer.json()["choices"][0]["token_ids"] == golden.tokens(SONGS[0], HARMLESS)
            server.signal(signal.SIGTERM)
            assert server.exit_code() == 0
    case("F12", times)


@pytest.mark.parametrize("times", MORE_TIMES)
def test_a_log_on_a_full_disk(t0, chaos_file, case, times):
    """F12: it is lost, and nothing else is: neither answers, nor refusals, nor why a model that fails was given up."""

    async def work(server):
        await server.until_listening()
        await server.until_ready()
        good = await ask(server.port, "/v1/completions", FIELDS | {"prompt": SONGS[0]})
        bad = await ask(server.port, "/v1/completions", {"prompt": 1.5})
        stream, following = (await started(server))[1:]
        chaos_file.write_text("raise")
        await to_the_end(following)
        return good.status, bad.status, [error["code"] for error in stream.errors]

    for _ in range(times):
        try:
            with Server(t0, *CHAOS, full_disk=True) as server:
                assert run(work(server)) == (200, 400, ["MODEL_FAILED"])
                assert server.process.poll() is None
        finally:
            chaos_file.unlink(missing_ok=True)
    case("F12", times)


@pytest.mark.parametrize("times", MORE_TIMES)
def test_few_descriptors(t0, canaries, case, times):
    """F13: more connections than it may open wait or are refused; streams that run go on, and so does the server."""
    with Server(t0, *CHAOS, descriptors=64).ready() as server:

        async def knock():
            try:
                async with asyncio.timeout(5):
                    answer = await server.get("/health/live")
                    return answer.status
            except (OSError, TimeoutError, asyncio.IncompleteReadError):
                return 0

        async def work():
            async with canaries(server) as singing:
                held = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(100)]
                knocked = await asyncio.gather(*(knock() for _ in range(20)))
                await singing.sing()
                for _, writer in held:
                    writer.transport.abort()
            assert singing.are_well
            assert set(knocked) <= {0, 200, 503}
            while await knock() != 200:
                await asyncio.sleep(0.05)
            return singing.largest_gap

        gap = max(run(work()) for _ in range(times))
        assert server.process.poll() is None
        assert Holding.of(server.process.pid).descriptors <= 40
    case("F13", 120 * times, canary_gap=gap)


@pytest.mark.parametrize("times", MORE_TIMES)
def test_a_clock_that_jumps_and_a_loop_that_hangs(t0, canaries, case, times):
    """F13: no deadline is reckoned by the wall clock. F17: a blocked event loop is noticed, and where it is."""
    with Server(t0, *CHAOS, "--unready-after", "20", "--stall-timeout", "40", meddled=True).ready() as server:

        async def work():
            async with canaries(server) as singing:
                for _ in range(4):
                    server.signal(signal.SIGUSR2)
                    await singing.sing()
                    assert (await server.get("/health/ready")).status == 200
                server.signal(signal.SIGUSR1)
                await asyncio.sleep(0.1)
                await singing.sing()
            assert singing.are_well
            assert singing.largest_gap >= BLOCKED_SECONDS / 2

        for _ in range(times):
            run(work())
        assert server.text.count("event loop has been blocked") >= times
        assert "_block" in server.text, "the place where it hangs is named"
        assert run(server.stats())["restarts"] == 0
    case("F13", 4 * times)
    case("F17", times)
