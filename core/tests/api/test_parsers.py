"""Tool calls and reasoning: the same result however the text is cut, linear, text only."""

from __future__ import annotations

import itertools
import json
import random
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bestiary.api.hooks import TextDelta, TextParser, ToolCall
from bestiary.serve.text.parsers import HermesToolCallParser, ThinkReasoningParser, parse_text

SAMPLES = [
    "",
    "plain text, 2 < 3 <tool",
    '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>',
    'Let me see.\n\n<tool_call>{"name": "f", "arguments": {"città": "Zürich 🏔"}}</tool_call>\n'
    '<tool_call>{"name": "g", "arguments": {}}</tool_call>\n done ',
    "<tool_call>not json</tool_call> and more",
    '<tool_call>{"name": "cut", "arguments": {"x": [1, 2]}}',
    '<tool_call>{"name": "cut", "arguments": {"x',
    "<<tool_call><tool_call></tool_call></tool_call>",
    " \n <think>\nhm </thin </think>\n\nThe answer <think>no</think> ",
    "<think>never ends ",
    "</think>too late",
    "thought without opening\n</think>\n42",
    "  no thought ",
]


def hermes(text: str) -> TextDelta:
    """The oracle: the whole text at once, by regular expression."""
    content, calls = "", []
    after_call = False
    for part in re.split(r"(<tool_call>.*?(?:</tool_call>|\Z))", text, flags=re.DOTALL):
        call = _call(part) if part.startswith("<tool_call>") else None
        if call is not None:
            content, after_call = content.rstrip(" \t\r\n"), True
            calls.append(call)
            continue
        piece = part.lstrip(" \t\r\n") if after_call else part
        after_call = after_call and not piece
        content += piece
    return TextDelta(content, "", tuple(calls))


def _call(part: str) -> ToolCall | None:
    try:
        data = json.loads(part.removeprefix("<tool_call>").removesuffix("</tool_call>"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(data, dict) or not isinstance(data.get("name"), str) or not data["name"].strip():
        return None
    arguments = data.get("arguments", {})
    return ToolCall(data["name"], json.dumps(arguments, ensure_ascii=False)) if isinstance(arguments, dict) else None


def think(text: str, started: bool) -> TextDelta:
    body = text if started else text.lstrip(" \t\r\n")
    if not started and not body.startswith("<think>"):
        return TextDelta(text)
    thought, tag, content = body.removeprefix("" if started else "<think>").partition("</think>")
    return TextDelta(content.lstrip(" \t\r\n") if tag else "", thought.strip(" \t\r\n"))


def chunked(parser: TextParser, chunks: list[str]) -> TextDelta:
    return sum((parser.feed(chunk) for chunk in chunks), TextDelta()) + parser.finish()


def cut(text: str, places: list[int]) -> list[str]:
    edges = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(edges)]


PARSERS = [
    (HermesToolCallParser, hermes),
    (ThinkReasoningParser, lambda text: think(text, False)),
    (lambda: ThinkReasoningParser(started=True), lambda text: think(text, True)),
]


@pytest.mark.parametrize("text", SAMPLES)
@pytest.mark.parametrize(("make", "oracle"), PARSERS)
def test_t08_every_two_cut_and_200_random_cuts_give_the_whole(make, oracle, text: str) -> None:  # type: ignore[no-untyped-def]
    expected = oracle(text)
    assert parse_text(make(), text) == expected
    for place in range(len(text) + 1):
        assert chunked(make(), [text[:place], text[place:]]) == expected
    draw = random.Random(text)
    for _ in range(200):
        places = [draw.randrange(len(text) + 1) for _ in range(draw.randrange(1, 12))]
        assert chunked(make(), cut(text, places)) == expected
    assert chunked(make(), list(text)) == expected


fragment = st.sampled_from(
    ["<tool_call>", "</tool_call>", "<think>", "</think>", "<", "</", "tool_call>", " ", "\n", "a", "{", "}", '"',
     '{"name": "f", "arguments": {"a": "b"}}', '{"name": 3}', "[]"]
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.lists(fragment, max_size=14).map("".join), st.lists(st.integers(0, 400), max_size=10), st.integers(0, 2))
def test_any_text_in_any_chunks_equals_the_oracle(text: str, places: list[int], which: int) -> None:
    make, oracle = PARSERS[which]
    assert chunked(make(), cut(text, places)) == oracle(text)  # type: ignore[no-untyped-call]


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60), st.lists(st.integers(0, 60), max_size=5))
def test_text_without_tags_passes_unchanged(text: str, places: list[int]) -> None:
    assert chunked(HermesToolCallParser(), cut(text, places)) == TextDelta(text)
    assert chunked(ThinkReasoningParser(), cut(text, places)) == TextDelta(text)


@pytest.mark.parametrize(
    "payload",
    [
        "[" * 100_000,
        '{"name": "f", "arguments": ' + '{"a":' * 50_000,
        '{"name": "f", "arguments": {"n": ' + "9" * 10_000 + "}}",
        '{"name": "f", "arguments": {"n": NaN}}',
        '{"name": "f", "arguments": {"n": 1e999}}',
        '{"name": "f", "name": "g", "arguments": {}}',
        '{"name": "f", "arguments": {"s": "\\ud800"}}',
        '{"name": "", "arguments": {}}',
        '{"name": "f", "arguments": "text"}',
        "__import__('os').system('true')",
        '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaa">]><x>&a;</x>',
    ],
)
def test_t05_bombs_and_code_stay_text(payload: str) -> None:
    text = f"<tool_call>{payload}</tool_call>"
    assert parse_text(HermesToolCallParser(), text) == TextDelta(text)


def test_text_comes_as_soon_as_it_is_certain() -> None:
    parser = HermesToolCallParser()
    assert parser.feed("Hello").content == "Hello"
    assert parser.feed(" wor").content == " wor"
    assert parser.feed("ld <too").content == "ld"
    assert parser.feed("ls>").content == " <tools>"
    reasoning = ThinkReasoningParser()
    assert not reasoning.feed("<thi")
    assert reasoning.feed("nk>one").reasoning == "one"
    assert reasoning.feed(" two").reasoning == " two"
    assert reasoning.feed("</think>three").content == "three"


@pytest.mark.parametrize("unit", ["a", " ", "<", "<tool_call>", "<tool_call></tool_call>"])
@pytest.mark.parametrize(("make", "oracle"), PARSERS)
def test_t06_time_is_linear(make, oracle, unit: str) -> None:  # type: ignore[no-untyped-def]
    def seconds(length: int) -> float:
        parser, text = make(), (unit * length)[:length]
        start = time.process_time()
        for character in text:
            parser.feed(character)
        parser.finish()
        return time.process_time() - start

    seconds(1000)
    small, large = min(seconds(2000) for _ in range(3)), min(seconds(16_000) for _ in range(2))
    assert large < 40 * max(small, 1e-3)  # quadratic would be 64 times
