"""Clients for Node: `openai`, and Vercel's AI SDK with its provider for compatible servers."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from .asking import GREEDY, MESSAGES, ROOM, TEXT, TOOL, check_weather
from .processes import KEY, PATIENCE

HERE = Path(__file__).with_name("node")
CASES = json.dumps({"messages": MESSAGES, "greedy": GREEDY, "tool": TOOL, "room": ROOM})


def run(program: str, url: str) -> dict[str, object]:
    node = shutil.which("node")
    if node is None or not (HERE / "node_modules").is_dir():
        pytest.skip("NO NODE HERE: clients for Node were not tried")
    done = subprocess.run(
        [node, str(HERE / program), url, KEY, CASES], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def openai(t0):
    return run("openai.mjs", t0.url)


@pytest.fixture(scope="module")
def ai(t0):
    return run("ai.mjs", t0.url)


def test_openai_chat(openai, oracle):
    (expected,) = oracle.chat(TEXT, **GREEDY)
    assert openai["chat"] == openai["streamed"]["text"] == openai["response"] == expected["text"]
    assert openai["streamed"]["tokens"] == len(expected["token_ids"])


def test_openai_tools(openai):
    for call in (openai["called"], openai["called_streaming"]):
        assert call["name"] == "weather"
        check_weather(json.loads(call["arguments"]))


def test_openai_structured_output(openai):
    check_weather(json.loads(openai["formed"]))


def test_openai_models_and_errors(openai):
    assert openai["models"] == ["t0"]
    assert openai["refused"] == {"is_not_found": True, "code": "model_not_found", "status": 404}


def test_ai_text(ai, oracle):
    (expected,) = oracle.chat(TEXT, **GREEDY)
    assert ai["text"] == ai["streamed"] == expected["text"]
    assert ai["tokens"] == ai["streamed_tokens"] == len(expected["token_ids"])
    assert ai["reason"] == "length"


def test_ai_objects(ai):
    check_weather(ai["object"])


def test_ai_tools(ai):
    for call in (ai["called"], ai["called_streaming"]):
        assert call["toolName"] == "weather"
        check_weather(call["input"])


def test_ai_errors(ai):
    assert ai["refused"]["is_api_error"]
    assert ai["refused"]["status"] == 404
    assert "another" in ai["refused"]["message"]
