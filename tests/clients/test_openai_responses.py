"""`openai`'s face for `/v1/responses`."""

from __future__ import annotations

import json
from typing import Literal

import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel

from .asking import FUNCTION, ROOM, TEXT, check_weather
from .processes import KEY

GREEDY = {"temperature": 0.0, "max_output_tokens": 24}
TOOL = {"type": "function"} | FUNCTION


class Beast(BaseModel):
    name: Literal["owl", "lion"]
    winged: bool


@pytest.fixture(scope="module")
def client(t0):
    with OpenAI(base_url=f"{t0.url}/v1", api_key=KEY, max_retries=0) as made:
        yield made


def test_a_response(client, oracle):
    answer = client.responses.create(model="t0", input=TEXT, **GREEDY)
    assert answer.output_text == oracle.chat(TEXT, temperature=0.0, max_tokens=24)[0]["text"]
    assert answer.status == "incomplete"
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.usage.output_tokens == 24


def test_streaming(client, oracle):
    with client.responses.stream(model="t0", input=TEXT, **GREEDY) as stream:
        events = list(stream)
    final = events[-1].response
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == final.output_text == oracle.chat(TEXT, temperature=0.0, max_tokens=24)[0]["text"]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].type == "response.created"
    assert events[-1].type == "response.incomplete"
    assert final.usage.output_tokens == 24


def test_parse(client):
    answer = client.responses.parse(model="t0", input=TEXT, text_format=Beast, temperature=0, max_output_tokens=ROOM)
    assert isinstance(answer.output_parsed, Beast)


def test_tools_and_their_answers(client):
    options = {"model": "t0", "tools": [TOOL], "temperature": 0, "max_output_tokens": ROOM}
    answer = client.responses.create(input=TEXT, tool_choice="required", **options)
    (call,) = answer.output
    check_weather(json.loads(call.arguments))
    said = [{"role": "user", "content": TEXT}, *[item.to_dict() for item in answer.output]]
    said.append({"type": "function_call_output", "call_id": call.call_id, "output": "mild"})
    again = client.responses.create(input=said, tool_choice="none", **options | GREEDY)
    assert again.output_text


def test_what_would_be_kept_is_refused(client):
    with pytest.raises(openai.BadRequestError) as raised:
        client.responses.create(model="t0", input=TEXT, previous_response_id="resp_1")
    assert raised.value.param == "previous_response_id"
