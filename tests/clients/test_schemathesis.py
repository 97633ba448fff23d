"""schemathesis against a real server, over its socket: every phase, every check, good requests and bad ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .processes import KEY

HERE = Path(__file__).parent
CONTEXT = "160"
"""What bounds answers without max_tokens, so that none takes long."""


def brief(text: str) -> str:
    """Without the middle of long lines: requests may be large."""
    return "\n".join(line if len(line) < 800 else f"{line[:400]} … {line[-400:]}" for line in text.splitlines())


@pytest.fixture(scope="module")
def server(serve, oracle):
    return serve(oracle.model, "--served-model-name", "t0", "--max-model-len", CONTEXT).wait_ready()


@pytest.mark.parametrize("examples", [5, pytest.param(50, marks=pytest.mark.full)])
def test_the_server_is_as_it_describes_itself(server, tmp_path, note, examples):
    report = tmp_path / "report.json"
    options = [
        "--config-file", str(HERE / "schemathesis.toml"), "run", f"{server.url}/openapi.json",
        "--header", f"Authorization: Bearer {KEY}", "--mode", "all", "--checks", "all", "--continue-on-failure",
        "--phases", "examples,coverage,fuzzing,stateful", "--max-examples", str(examples), "--seed", "1",
        "--request-timeout", "60", "--generation-database", "none", "--no-color", "--report-json-path", str(report),
    ]  # fmt: skip
    command = [str(Path(sys.executable).with_name("schemathesis")), *options]
    environment = os.environ | {"SCHEMATHESIS_HOOKS": "tests.clients.schemathesis_hooks"}
    done = subprocess.run(
        command,
        env=environment,
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        timeout=3600,
        check=False,
    )
    assert done.returncode == 0, brief(done.stdout) + done.stderr[-2_000:]
    note(f"schemathesis, {examples} examples", json.loads(report.read_text("utf-8")))
