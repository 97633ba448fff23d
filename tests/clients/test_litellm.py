"""litellm, as a client of an OpenAI-compatible server."""

from __future__ import annotations

import json

import litellm
import pytest

from .asking import GREEDY, MESSAGES, ROOM, TEXT, TOOL, check_weather
from .processes import KEY


@pytest.fixture(scope="module")
def ask(t0):
    def call(**options):
        given = {
            "model": "openai/t0",
            "messages": MESSAGES,
            "api_base": f"{t0.url}/v1",
            "api_key": KEY,
            "max_retries": 0,
        }
        return litellm.completion(**given | GREEDY | options)

    return call


def test_completion(ask, oracle):
    answer = ask()
    (expected,) = oracle.chat(TEXT, **GREEDY)
    assert answer.choices[0].message.content == expected["text"]
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == len(expected["token_ids"])


def test_streaming(ask, oracle):
    text = "".join(chunk.choices[0].delta.content or "" for chunk in ask(stream=True))
    assert text == oracle.chat(TEXT, **GREEDY)[0]["text"]


def test_tools(ask):
    answer = ask(tools=[TOOL], tool_choice="required", max_tokens=ROOM)
    assert answer.choices[0].finish_reason == "tool_calls"
    (call,) = answer.choices[0].message.tool_calls
    check_weather(json.loads(call.function.arguments))


def test_streamed_tools(ask):
    chunks = list(ask(tools=[TOOL], tool_choice="required", max_tokens=ROOM, stream=True))
    (call,) = litellm.stream_chunk_builder(chunks).choices[0].message.tool_calls
    assert call.function.name == "weather"
    check_weather(json.loads(call.function.arguments))


def test_embedding(pooling, oracle):
    answer = litellm.embedding(
        "openai/t0", input=["An owl."], api_base=f"{pooling.url}/v1", api_key=KEY, encoding_format="float"
    )
    assert answer.data[0]["embedding"] == pytest.approx(oracle.ask("embed", texts=["An owl."])[0], abs=1e-5)


def test_errors_are_typed(ask):
    with pytest.raises(litellm.NotFoundError):
        ask(model="openai/another")
    with pytest.raises(litellm.ContextWindowExceededError):
        ask(messages=[{"role": "user", "content": "long " * 3000}])
    with pytest.raises(litellm.AuthenticationError):
        ask(api_key="another")
