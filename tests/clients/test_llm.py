"""`llm`, the command line, with a server in its extra-openai-models.yaml."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .asking import SCHEMA, TEXT, check_weather
from .processes import KEY, PATIENCE, ROOT

PAGE = (ROOT / "docs" / "clients.md").read_text("utf-8")
(CONFIGURATION,) = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def llm(t0, tmp_path_factory):
    home = tmp_path_factory.mktemp("llm")
    (home / "extra-openai-models.yaml").write_text(
        CONFIGURATION.replace("http://localhost:8000", t0.url).replace("smollm2", "t0"), "utf-8"
    )
    (home / "keys.json").write_text(json.dumps({"bestiary": KEY}), "utf-8")

    def run(*arguments: str) -> str:
        command = [str(Path(sys.executable).with_name("llm")), *arguments]
        environment = os.environ | {"LLM_USER_PATH": str(home)}
        done = subprocess.run(
            command, env=environment, input="", capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_it_is_listed(llm):
    assert "beast" in llm("models", "list")


@pytest.mark.parametrize("way", [(), ("--no-stream",)])
def test_a_prompt(llm, oracle, way):
    printed = llm("prompt", "-m", "beast", "-o", "temperature", "0", "-o", "max_tokens", "24", *way, TEXT)
    assert printed.rstrip("\n") == oracle.chat(TEXT, temperature=0, max_tokens=24)[0]["text"].rstrip("\n")


def test_a_schema(llm):
    check_weather(json.loads(llm("prompt", "-m", "beast", "--no-stream", "--schema", json.dumps(SCHEMA), TEXT)))


def test_the_next_turn(llm):
    llm("prompt", "-m", "beast", "-o", "max_tokens", "8", TEXT)
    assert llm("prompt", "-c", "-o", "max_tokens", "8", "And another?")
