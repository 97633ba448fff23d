"""Reasoning and tool calls: whole, and in pieces."""

from __future__ import annotations

import json

import pytest

from bestiary.serve.openai.schemas.chat import ChatCompletion
from bestiary.serve.openai.schemas.responses import ResponseDocument
from bestiary.serve.text.parsers.choose import AnswerFormats
from bestiary.serve.text.parsers.families import HERMES, THINK

from .conftest import events
from .fake import Script

CHAT, ANSWER = "/v1/chat/completions", "/v1/responses"
FORMATS = AnswerFormats(HERMES, THINK, shows_tools=True)
HI = {"messages": [{"role": "user", "content": "Hi"}]}
FUNCTION = {"name": "f", "parameters": {"type": "object"}}
TOOLS = {"tools": [{"type": "function", "function": FUNCTION}]}
CALLS = [("f", {"a": "ü 🦁"}), ("f", {})]
WRITTEN = "".join(
    f'\n<tool_call>\n{{"name": "{name}", "arguments": {json.dumps(given, ensure_ascii=False)}}}\n</tool_call>'
    for name, given in CALLS
)
TEXT = f"<think>\nLet me see.\n</think>\n\nI look it up.{WRITTEN}"


@pytest.fixture(autouse=True)
def script(llm):
    llm.script = Script(answer=TEXT)


def calls_of(message):
    return [(each["function"]["name"], json.loads(each["function"]["arguments"])) for each in message["tool_calls"]]


def test_a_whole_answer(ask):
    document = ask("POST", CHAT, HI | TOOLS, formats=FORMATS).json()
    ChatCompletion.model_validate(document)
    (choice,) = document["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["reasoning_content"].strip() == "Let me see."
    assert choice["message"]["content"].strip() == "I look it up."
    assert calls_of(choice["message"]) == CALLS
    assert len({each["id"] for each in choice["message"]["tool_calls"]}) == 2


@pytest.mark.parametrize("options", [{}, {"logprobs": True}, {"n": 2}], ids=str)
def test_a_stream_adds_up_to_it(ask, options):
    whole = ask("POST", CHAT, HI | TOOLS | options, formats=FORMATS).json()["choices"][0]["message"]
    chunks = events(ask("POST", CHAT, HI | TOOLS | options | {"stream": True}, formats=FORMATS))[:-1]
    deltas = [each["choices"][0]["delta"] for each in chunks if each["choices"][0]["index"] == 0]
    assert "".join(each.get("content") or "" for each in deltas) == whole["content"]
    assert "".join(each.get("reasoning_content") or "" for each in deltas) == whole["reasoning_content"]
    pieces = [piece for each in deltas for piece in each.get("tool_calls", [])]
    firsts = [piece for piece in pieces if "id" in piece]
    assert [(each["index"], each["type"], each["function"]["name"]) for each in firsts] == [
        (0, "function", "f"), (1, "function", "f"),
    ]  # fmt: skip
    for number, (_, given) in enumerate(CALLS):
        mine = [piece["function"]["arguments"] for piece in pieces if piece["index"] == number]
        assert json.loads("".join(mine)) == given
    assert len(pieces) > 4, "arguments come in pieces"
    last = next(each["choices"][0] for each in reversed(chunks) if each["choices"][0]["index"] == 0)
    assert last["finish_reason"] == "tool_calls"


def test_without_tools_calls_are_text(ask):
    for options in ({}, TOOLS | {"tool_choice": "none"}):
        message = ask("POST", CHAT, HI | options, formats=FORMATS).json()["choices"][0]["message"]
        assert "<tool_call>" in message["content"] and "tool_calls" not in message


def test_a_template_that_does_not_show_tools_is_warned_of(ask):
    assert "warning" not in ask("POST", CHAT, HI | TOOLS, formats=FORMATS).headers
    silent = AnswerFormats(HERMES)
    assert "does not tell" in ask("POST", CHAT, HI | TOOLS, formats=silent).headers["warning"]


def test_items_of_a_response(ask):
    tools = {"tools": [{"type": "function", **FUNCTION}]}
    document = ask("POST", ANSWER, {"input": "Hi"} | tools, formats=FORMATS).json()
    ResponseDocument.model_validate(document)
    kinds = ["reasoning", "message", "function_call", "function_call"]
    assert [each["type"] for each in document["output"]] == kinds
    assert [(each["name"], json.loads(each["arguments"])) for each in document["output"][2:]] == CALLS
    found = events(ask("POST", ANSWER, {"input": "Hi", "stream": True} | tools, formats=FORMATS))
    last = found[-1]["response"]
    ResponseDocument.model_validate(last)
    assert [each["type"] for each in last["output"]] == kinds
    added = [each for each in found if each["type"] == "response.output_item.added"]
    done = [each for each in found if each["type"] == "response.output_item.done"]
    assert [each["output_index"] for each in added] == [each["output_index"] for each in done] == [0, 1, 2, 3]
    assert [each["item"]["id"] for each in added] == [each["id"] for each in last["output"]]
    for index, (_, given) in enumerate(CALLS, 2):
        grown = [each for each in found if each["type"] == "response.function_call_arguments.delta"]
        assert json.loads("".join(each["delta"] for each in grown if each["output_index"] == index)) == given
    names = [each["type"] for each in found]
    assert names.index("response.reasoning_text.done") < names.index("response.output_text.delta")


@pytest.mark.parametrize(
    ("fields", "code", "field"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}] * 2}, "BAD_TOOLS", "tools[1].function.name"),
        ({"tool_choice": "required"}, "BAD_TOOL_CHOICE", "tool_choice"),
        ({**TOOLS, "tool_choice": {"type": "function", "function": {"name": "g"}}}, "BAD_TOOL_CHOICE", "tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"$ref": "#/x"}}}]}, "BAD_SCHEMA",
         None),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {
            "properties": {"a": {"type": "string", "pattern": "("}}}}}]}, "BAD_SCHEMA", None),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"d": "x" * 70_000}}}]},
         "TOOLS_LIMIT", None),
    ],
)  # fmt: skip
def test_bad_tools(ask, fields, code, field):
    response = ask("POST", CHAT, HI | fields)
    assert (response.status_code, response.json()["error"]["code"]) == (400, code)
    assert field is None or response.json()["error"]["param"] == field
