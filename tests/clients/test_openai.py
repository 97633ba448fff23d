"""`openai`, OpenAI's client for Python."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any, Literal

import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel, Field

from .asking import GREEDY, MESSAGES, ROOM, TEXT, TOOL, check_weather
from .processes import KEY

LONG = [{"role": "user", "content": "long " * 3000}]


class Weather(BaseModel):
    city: Literal["Paris", "Rome"]
    warm: bool
    degrees: int = Field(ge=0, le=99)


@pytest.fixture(scope="module")
def client(t0):
    with OpenAI(base_url=f"{t0.url}/v1", api_key=KEY, max_retries=0) as made:
        yield made


def ask(client: OpenAI, **options: Any) -> Any:
    return client.chat.completions.create(model="t0", messages=MESSAGES, **GREEDY | options)


def test_chat(client, oracle):
    answer = ask(client)
    (expected,) = oracle.chat(TEXT, **GREEDY)
    assert answer.choices[0].message.content == expected["text"]
    assert answer.usage.completion_tokens == len(expected["token_ids"])
    assert answer.choices[0].finish_reason == "length"
    assert answer._request_id


def test_streaming_with_usage(client, oracle):
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    (expected,) = oracle.chat(TEXT, **GREEDY)
    assert text == expected["text"]
    assert chunks[-1].usage.completion_tokens == len(expected["token_ids"])
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"


def test_several_drawn_answers(client, oracle):
    drawn = {"n": 3, "seed": 7, "temperature": 1.0}
    answer = ask(client, **drawn)
    expected = oracle.chat(TEXT, **GREEDY | drawn)
    assert [choice.message.content for choice in answer.choices] == [each["text"] for each in expected]
    assert len({choice.message.content for choice in answer.choices}) == 3


def test_token_ids_as_an_extra_field(client, oracle):
    answer = ask(client, extra_body={"return_token_ids": True, "top_k": 5, "ignore_eos": True})
    (expected,) = oracle.chat(TEXT, **GREEDY, top_k=5, ignore_eos=True)
    assert answer.choices[0].token_ids == expected["token_ids"]


def test_stop(client, oracle):
    (expected,) = oracle.chat(TEXT, **GREEDY)
    stop = expected["text"][6:8]
    answer = ask(client, stop=[stop])
    assert answer.choices[0].message.content == expected["text"].partition(stop)[0]
    assert answer.choices[0].finish_reason == "stop"


def test_logprobs(client):
    answer = ask(client, logprobs=True, top_logprobs=3)
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens
    for token in content:
        assert len(token.top_logprobs) == 3
        assert token.logprob == max(each.logprob for each in token.top_logprobs) <= 0
    spelled = b"".join(bytes(token.bytes) for token in content)
    assert spelled.decode("utf-8", "replace").startswith(answer.choices[0].message.content[:12])


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_tools(client, choice):
    answer = ask(client, tools=[TOOL], tool_choice=choice, max_tokens=ROOM).choices[0]
    assert answer.finish_reason == "tool_calls"
    (call,) = answer.message.tool_calls
    assert call.function.name == "weather"
    check_weather(json.loads(call.function.arguments))


def test_streamed_tools(client):
    whole = ask(client, tools=[TOOL], tool_choice="required", max_tokens=ROOM).choices[0].message.tool_calls[0]
    with client.chat.completions.stream(
        model="t0", messages=MESSAGES, tools=[TOOL], tool_choice="required", temperature=0, max_tokens=ROOM
    ) as stream:
        kinds = {event.type for event in stream}
        (call,) = stream.get_final_completion().choices[0].message.tool_calls
    assert "tool_calls.function.arguments.delta" in kinds
    assert json.loads(call.function.arguments) == json.loads(whole.function.arguments)


def test_the_answer_to_a_tool(client):
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    said = [{"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "call_1", "content": "mild"}]
    answer = client.chat.completions.create(model="t0", messages=MESSAGES + said, tools=[TOOL], **GREEDY)
    assert answer.choices[0].message.content


def test_parse(client):
    answer = client.chat.completions.parse(
        model="t0", messages=MESSAGES, response_format=Weather, temperature=0, max_tokens=ROOM
    )
    assert isinstance(answer.choices[0].message.parsed, Weather)


@pytest.mark.parametrize("kind", ["json_object", "json_schema"])
def test_response_format(client, kind):
    form = {"type": kind}
    if kind == "json_schema":
        form["json_schema"] = {"name": "weather", "schema": TOOL["function"]["parameters"], "strict": True}
    answer = ask(client, response_format=form, max_tokens=ROOM)
    found = json.loads(answer.choices[0].message.content)
    assert isinstance(found, dict)
    if kind == "json_schema":
        check_weather(found)


def test_completions(client, oracle):
    answer = client.completions.create(model="t0", prompt=["A beast", "An owl"], **GREEDY)
    expected = [oracle.ask("complete", prompt=prompt, **GREEDY)[0]["text"] for prompt in ("A beast", "An owl")]
    assert [choice.text for choice in answer.choices] == expected


def test_streamed_completion_with_echo_and_logprobs(client):
    whole = client.completions.create(model="t0", prompt="A beast", echo=True, logprobs=2, **GREEDY).choices[0]
    chunks = list(client.completions.create(model="t0", prompt="A beast", echo=True, logprobs=2, stream=True, **GREEDY))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.text
    assert whole.text.startswith("A beast")
    streamed = [value for chunk in chunks for value in chunk.choices[0].logprobs.token_logprobs]
    assert streamed[0] is None
    assert streamed == whole.logprobs.token_logprobs


def test_models(client):
    assert [model.id for model in client.models.list()] == ["t0"]
    assert client.models.retrieve("t0").id == "t0"


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_embeddings(pooling, oracle, encoding):
    texts = ["An owl.", "A lion and a unicorn."]
    with OpenAI(base_url=f"{pooling.url}/v1", api_key=KEY, max_retries=0) as client:
        answer = client.embeddings.create(model="t0", input=texts, encoding_format=encoding)
    expected = oracle.ask("embed", texts=texts)
    for given, wanted in zip(answer.data, expected, strict=True):
        numbers = given.embedding
        if encoding == "base64":
            raw = base64.b64decode(numbers)
            numbers = struct.unpack(f"<{len(raw) // 4}f", raw)
        assert list(numbers) == pytest.approx(wanted, abs=1e-5)


def test_embeddings_of_a_model_that_makes_none(client):
    with pytest.raises(openai.NotFoundError) as raised:
        client.embeddings.create(model="t0", input="An owl.")
    assert raised.value.code == "WRONG_RUNNER"


@pytest.mark.parametrize(
    ("kind", "code", "place", "options"),
    [
        (openai.NotFoundError, "model_not_found", "model", {"model": "another"}),
        (openai.BadRequestError, "BAD_REQUEST", "temperature", {"temperature": -1}),
        (openai.BadRequestError, "context_length_exceeded", "messages", {"messages": LONG}),
        (openai.BadRequestError, "UNSUPPORTED_PARAMETER", "modalities[0]", {"modalities": ["audio"]}),
    ],
)  # fmt: skip
def test_errors_are_typed(client, kind, code, place, options):
    with pytest.raises(kind) as raised:
        client.chat.completions.create(**{"model": "t0", "messages": MESSAGES} | GREEDY | options)
    assert raised.value.code == code
    assert raised.value.param == place
    assert raised.value.request_id


def test_a_wrong_key(t0):
    with (
        OpenAI(base_url=f"{t0.url}/v1", api_key="another", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError) as raised,
    ):
        client.models.list()
    assert raised.value.code == "invalid_api_key"


def test_503_while_the_model_is_loaded_and_retries_until_it_is(serve, oracle):
    server = serve(oracle.model, "--served-model-name", "t0")
    with OpenAI(base_url=f"{server.url}/v1", api_key=KEY) as client:
        with pytest.raises(openai.InternalServerError) as raised:
            ask(client.with_options(max_retries=0))
        assert raised.value.status_code == 503
        assert int(raised.value.response.headers["retry-after"]) > 0
        assert (
            ask(client.with_options(max_retries=40)).choices[0].message.content
            == oracle.chat(TEXT, **GREEDY)[0]["text"]
        )
