"""Standard streams that are closed, full or left by their reader: one line about it at most, and an exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

UNBUFFERED = [{}, {"PYTHONUNBUFFERED": "1"}]


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line of shell in which `bestiary` is ours and `$M` may be a model."""
    program = f'bestiary() {{ "{sys.executable}" -m bestiary "$@"; }}; {command}'
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    path = os.pathsep.join(filter(None, sys.path))
    return subprocess.run(
        ["bash", "-c", program], env=clean | {"PYTHONPATH": path} | environment,
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("arguments", ["models", "--help", "generate m hello", "chat m", "bench latency m"])
def test_a_closed_output_is_said_before_anything_is_done(arguments: str) -> None:
    done = shell(f"bestiary {arguments} >&-")
    assert done.returncode == 1
    assert done.stderr == "USAGE: standard output is closed, and there is nowhere to write to\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no full device")
@pytest.mark.parametrize("unbuffered", UNBUFFERED, ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("arguments", ["models --json", "--help"])
def test_a_full_output_is_one_line(arguments: str, unbuffered: dict[str, str]) -> None:
    done = shell(f"bestiary {arguments} >/dev/full", **unbuffered)
    assert done.returncode == 1
    assert done.stderr == "standard output cannot be written: No space left on device\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no full device")
@pytest.mark.parametrize(
    ("arguments", "unbuffered"),
    [
        ("generate $M x --max-tokens 2 -q", {}),
        pytest.param("generate $M x --max-tokens 2 -q", {"PYTHONUNBUFFERED": "1"}, marks=pytest.mark.full),
        pytest.param("chat $M -q <<<hi", {}, marks=pytest.mark.full),
        ("chat $M -q <<<hi", {"PYTHONUNBUFFERED": "1"}),
    ],
)
def test_an_answer_that_cannot_be_written_is_one_line(arguments: str, unbuffered: dict[str, str], tiny: Path) -> None:
    done = shell(f"bestiary {arguments} >/dev/full", M=str(tiny), **unbuffered)
    assert done.returncode == 1
    assert done.stderr == "standard output cannot be written: No space left on device\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no full device")
def test_an_error_that_cannot_be_written_keeps_its_exit_code() -> None:
    done = shell("bestiary inspect nowhere --json >/dev/full")
    assert done.returncode == 2
    assert "MODEL_NOT_FOUND" in done.stderr
    assert done.stderr.endswith("\nstandard output cannot be written: No space left on device\n")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
def test_what_cannot_be_said_is_dropped_and_goes_nowhere_else(redirection: str) -> None:
    done = shell(f"bestiary modls {redirection}")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


def test_a_closed_input_is_empty() -> None:
    generate = shell("bestiary generate m <&-")
    assert generate.returncode == 1 and "EMPTY_PROMPT" in generate.stderr
    chat = shell("bestiary chat m <&-")
    assert chat.returncode == 1 and "standard input is closed" in chat.stderr


@pytest.mark.parametrize("unbuffered", UNBUFFERED, ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("arguments", [["models"], ["models", "--json", "--debug"], ["--help"]], ids=" ".join)
def test_a_reader_that_left_is_no_failure_to_speak_of(arguments: list[str], unbuffered: dict[str, str]) -> None:
    """It is gone before the first byte; nothing is said, not even when the interpreter ends. 141 is SIGPIPE's code."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        done = subprocess.run(
            [sys.executable, "-m", "bestiary", *arguments],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))} | unbuffered,
            stdout=pipe, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (141, "")
