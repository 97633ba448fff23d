# ruff: noqa: E501 — one case a line
"""R16: conversations as clients send them, and what templates get of them."""

from __future__ import annotations

from typing import Any

import pytest

from bestiary.api.errors import RequestError
from bestiary.serve.text.conversation import check_conversation

USER = {"role": "user", "content": "x"}
CALL = {"id": "a1", "type": "function", "function": {"name": "f", "arguments": '{"città": [1.0, null]}'}}


def calling(**changes: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": [{**CALL, **changes}]}


def part(**changes: Any) -> list[dict[str, Any]]:
    return [
        USER,
        {"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "text", "text": "y", **changes}]},
    ]


F = "messages[0].tool_calls[0]"
REFUSED = {
    "10^5 messages": ([USER] * 100_000, "messages"),
    "none": ([], "messages"),
    "a text": ("hello", "messages"),
    "an object": ({"role": "user"}, "messages"),
    "no object": ([3], "messages[0]"),
    "an unknown role": ([{"role": "wizard", "content": "x"}], "messages[0].role"),
    "no role": ([{"content": "x"}], "messages[0].role"),
    "a list for a role": ([{"role": ["user"], "content": "x"}], "messages[0].role"),
    "functions of old": ([{"role": "function", "name": "f", "content": "x"}], "messages[0].role"),
    "content null": ([USER, {"role": "user", "content": None}], "messages[1].content"),
    "content missing": ([{"role": "assistant"}], "messages[0].content"),
    "content a number": ([{"role": "user", "content": 3}], "messages[0].content"),
    "content an empty list": ([{"role": "user", "content": []}], "messages[0].content"),
    "content an object": ([{"role": "user", "content": {"type": "text"}}], "messages[0].content"),
    "a part that is a text": ([{"role": "user", "content": ["x"]}], "messages[0].content[0]"),
    "a part without text": (part(text=None), "messages[1].content[1].text"),
    "a name of 1 MB": ([{**USER, "name": "n" * 2**20}], "messages[0].name"),
    "a name with a mark": ([{**USER, "name": "<|im_start|>"}], "messages[0].name"),
    "a name that is none": ([{**USER, "name": 3}], "messages[0].name"),
    "calls of a user": ([{**USER, "tool_calls": [CALL]}], "messages[0].tool_calls"),
    "calls as an object": ([{"role": "assistant", "content": "x", "tool_calls": CALL}], "messages[0].tool_calls"),
    "very many calls": ([{"role": "assistant", "tool_calls": [CALL] * 129}], "messages[0].tool_calls"),
    "a call that is none": ([{"role": "assistant", "tool_calls": [3]}], F),
    "a call without id": ([calling(id=None)], f"{F}.id"),
    "a call of another kind": ([calling(type="custom")], f"{F}.type"),
    "a call without function": ([calling(function=None)], F),
    "a call without a name": ([calling(function={"arguments": "{}"})], f"{F}.function.name"),
    "arguments that are no JSON": ([calling(function={"name": "f", "arguments": "{x}"})], f"{F}.function.arguments"),
    "arguments that are no object": ([calling(function={"name": "f", "arguments": "[]"})], f"{F}.function.arguments"),
    "arguments NaN": ([calling(function={"name": "f", "arguments": '{"a": NaN}'})], f"{F}.function.arguments"),
    "arguments that are deep": (
        [calling(function={"name": "f", "arguments": '{"a":' + "[" * 10**5 + "]" * 10**5 + "}"})], f"{F}.function.arguments",
    ),
    "an answer without tool_call_id": ([calling(), {"role": "tool", "content": "x"}], "messages[1].tool_call_id"),
    "an answer to no call": ([calling(), {"role": "tool", "tool_call_id": "b", "content": "x"}], "messages[1].tool_call_id"),
    "an answer before its call": ([{"role": "tool", "tool_call_id": "a1", "content": "x"}, calling()], "messages[0].tool_call_id"),
    "an id of 1 MB": ([{"role": "tool", "tool_call_id": "a" * 2**20, "content": "x"}], "messages[0].tool_call_id"),
    "half a surrogate pair": ([{"role": "user", "content": "x", "more": "\ud800"}], "messages[0]"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_r16_refused_with_the_place(case: str) -> None:
    messages, field = REFUSED[case]
    with pytest.raises(RequestError) as caught:
        check_conversation(messages)
    assert (caught.value.error_code, caught.value.field) == ("BAD_MESSAGES", field)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file", "video_url", "refusal"])
def test_what_is_no_text_is_unsupported(kind: str) -> None:
    with pytest.raises(RequestError) as caught:
        check_conversation(part(type=kind))
    assert (caught.value.error_code, caught.value.field) == ("UNSUPPORTED_INPUT", "messages[1].content[1]")


def test_arguments_come_as_the_template_takes_them() -> None:
    messages = [calling(), {"role": "tool", "tool_call_id": "a1", "content": "y"}]
    (call, answer) = check_conversation(messages)
    assert call["tool_calls"][0]["function"] == {"name": "f", "arguments": {"città": [1.0, None]}}
    assert call["content"] is None
    assert answer == messages[1]
    (call, _) = check_conversation(messages, arguments="text")
    assert call["tool_calls"][0]["function"]["arguments"] == '{"città": [1.0, null]}'
    assert messages[0]["tool_calls"][0]["function"]["arguments"] == CALL["function"]["arguments"]


@pytest.mark.parametrize("arguments", [None, "", {}, "{}"])
def test_a_call_without_arguments(arguments: object) -> None:
    (call,) = check_conversation([calling(function={"name": "f", "arguments": arguments})])
    assert call["tool_calls"][0]["function"]["arguments"] == {}


def test_roles_and_what_stays() -> None:
    messages = [
        {"role": "developer", "content": "x"},
        {"role": "assistant", "content": "y", "tool_calls": [], "reasoning_content": "z"},
    ]
    assert check_conversation(messages) == [
        {"role": "system", "content": "x"}, {"role": "assistant", "content": "y", "reasoning_content": "z"},
    ]  # fmt: skip
    assert check_conversation(messages, developer=True)[0]["role"] == "developer"
