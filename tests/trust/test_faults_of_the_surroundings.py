"""What surrounds a server goes wrong, as its clients see it: F12, F13, F16, F17."""

import asyncio
import os
import signal
import socket
import subprocess
import sys

import pytest

from .support.baseline import Holding
from .support.chaos import HARMLESS
from .support.client import ask
from .support.completions import CHAOS, FIELDS, run, started, to_the_end
from .support.meddled import BLOCKED_SECONDS
from .support.scene import PATIENCE, SONGS
from .support.server import Server
from .support.times import MORE_TIMES, TIMES

pytestmark = pytest.mark.usefixtures("chaos_file")


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


@pytest.mark.parametrize("times", [pytest.param(1, marks=pytest.mark.full), pytest.param(10, marks=pytest.mark.soak)])
def test_few_descriptors(t0, http_canaries, case, times):
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
            async with http_canaries(server) as singing:
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
def test_a_clock_that_jumps_and_a_loop_that_hangs(t0, http_canaries, case, times):
    """F13: no deadline is reckoned by the wall clock. F17: a blocked event loop is noticed, and where it is."""
    with Server(t0, *CHAOS, "--unready-after", "20", "--stall-timeout", "40", meddled=True).ready() as server:

        async def work():
            async with http_canaries(server) as singing:
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


@pytest.mark.parametrize(
    "log", [">/dev/full", pytest.param(">log", marks=pytest.mark.full), pytest.param(">&-", marks=pytest.mark.full)]
)
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
