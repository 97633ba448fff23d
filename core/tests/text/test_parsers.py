"""Tool calls and reasoning: the same result however the text is cut, linear, text only, nothing lost."""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bestiary.api.hooks import TextDelta, TextParser
from bestiary.serve.text.parsers.answer import AnswerParser, parse_text
from bestiary.serve.text.parsers.families import REASONING_FORMATS, TOOL_FORMATS

from .answers import (
    SAMPLES,
    THOUGHTS,
    Sample,
    Thought,
    chunked,
    cut,
    cuts,
    expected,
    reasoning_parser,
    tool_parser,
)

FAMILIES = sorted(TOOL_FORMATS)


def test_every_family_has_samples() -> None:
    assert {sample.family for sample in SAMPLES if sample.calls} == set(TOOL_FORMATS)
    assert {thought.family for thought in THOUGHTS if thought.reasoning} == set(REASONING_FORMATS)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: f"{sample.family}:{sample.text[:30]!r}")
def test_t08_calls_do_not_depend_on_cuts(sample: Sample) -> None:
    wanted = expected(sample.content, found=sample.calls)
    assert parse_text(tool_parser(sample.family), sample.text) == wanted
    for chunks in cuts(sample.text):
        assert chunked(tool_parser(sample.family), chunks) == wanted


@pytest.mark.parametrize("thought", THOUGHTS, ids=lambda thought: f"{thought.family}:{thought.text[:30]!r}")
def test_t08_reasoning_does_not_depend_on_cuts(thought: Thought) -> None:
    wanted = expected(thought.content, thought.reasoning)
    assert parse_text(reasoning_parser(thought.family, thought.started), thought.text) == wanted
    for chunks in cuts(thought.text):
        assert chunked(reasoning_parser(thought.family, thought.started), chunks) == wanted


def fragments(family: str) -> list[str]:
    """What texts of a family are made of, whole and in pieces."""
    texts = [sample.text for sample in SAMPLES if sample.family == family and sample.text]
    pieces = {text[at : at + length] for text in texts for at in range(0, len(text), 7) for length in (1, 9, 40)}
    return sorted({*texts, *pieces, *TOOL_FORMATS[family].opening, TOOL_FORMATS[family].closing, " ", "\n", '"', "\\"})


@pytest.mark.parametrize("family", FAMILIES)
def test_any_text_in_any_chunks(family: str) -> None:
    @settings(max_examples=60, deadline=None)
    @given(
        st.lists(st.sampled_from(fragments(family)), max_size=8).map("".join), st.lists(st.integers(0, 900), max_size=9)
    )
    def check(text: str, places: list[int]) -> None:
        whole = parse_text(tool_parser(family), text)
        assert chunked(tool_parser(family), cut(text, places)) == whole
        assert chunked(tool_parser(family), text) == whole
        if not whole.tool_calls:
            assert whole.content == text

    check()


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [*(m for f in REASONING_FORMATS.values() for m in (*f.opening, *f.closing, *f.dropped)), " ", "<", "x"]
        ),
        max_size=10,
    ).map("".join),
    st.lists(st.integers(0, 400), max_size=9),
    st.sampled_from(sorted(REASONING_FORMATS)),
    st.booleans(),
)
def test_any_marks_in_any_chunks(text: str, places: list[int], family: str, started: bool) -> None:
    whole = parse_text(reasoning_parser(family, started), text)
    assert chunked(reasoning_parser(family, started), cut(text, places)) == whole
    assert chunked(reasoning_parser(family, started), text) == whole


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60), st.lists(st.integers(0, 60), max_size=5), st.sampled_from(FAMILIES))
def test_text_without_marks_passes_unchanged(text: str, places: list[int], family: str) -> None:
    assert chunked(tool_parser(family), cut(text, places)) == TextDelta(text)
    assert chunked(reasoning_parser("think"), cut(text, places)) == TextDelta(text)


ASIDES = re.compile(
    r'"(?:id|type|tool_call_id)": (?:"[^"]*"|[0-9]+)'  # what a call holds beside name and arguments
    r"|(?<=CALLS\])\w+(?:\[CALL_ID\]\w+)?\[ARGS\]"  # between a name and its arguments
    r"|(?<=functions\.)\w+[: <].*?(?:argument_begin|message)\|>"
)


@pytest.mark.parametrize(
    "sample", [each for each in SAMPLES if each.calls], ids=lambda each: f"{each.family}:{each.text[:30]!r}"
)
def test_no_text_is_lost(sample: Sample) -> None:
    """A word put anywhere comes out somewhere, except as the id of a call or between its name and its arguments."""
    asides = {place for found in ASIDES.finditer(sample.text) for place in range(found.start() + 1, found.end())}
    for place in range(len(sample.text) + 1):
        found = parse_text(tool_parser(sample.family), f"{sample.text[:place]}Wörd{sample.text[place:]}")
        shown = found.content + "".join(f"{call.name}{call.arguments}" for call in found.tool_calls)
        assert "Wörd" in shown or place in asides, sample.text[:place]


# ------------------------------------------------------------------------------------------------ hostile answers

BOMBS = [
    "[" * 3_000,
    '{"a":' * 3_000,
    "9" * 3_000,
    "NaN",
    "1e999",
    '"\\ud800"',
    '"' + "\\" * 3_001,
    "<?xml version='1.0'?><!DOCTYPE x [<!ENTITY a 'aaaa'><!ENTITY b '&a;&a;&a;&a;'>]><x>&b;</x>",
    "&lt;&amp;&#x41;",
    "{'a': " * 3_000,
    "f(" * 3_000,
    "(" * 3_000,
]


@pytest.mark.parametrize("family", FAMILIES)
def test_t05_bombs_stay_text(family: str) -> None:
    """All of a bomb comes out as text, whatever was made of it, and the same however it is cut."""
    text = next(each.text for each in SAMPLES if each.family == family and each.calls)
    for bomb in BOMBS:
        bombed = text.replace("1", bomb, 1) if "1" in text else text + bomb
        found = parse_text(tool_parser(family), bombed)
        assert len(found.content) + sum(len(call.arguments) for call in found.tool_calls) >= len(bomb)
        assert chunked(tool_parser(family), cut(bombed, [7, 20, len(bombed) // 2])) == found


def test_t05_nothing_is_evaluated_in_10_000_answers(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    code = [
        f"__import__('pathlib').Path({str(canary)!r}).touch()",
        f"open({str(canary)!r}, 'w')",
        "__import__('os')._exit(3)",
        "exit()",
        "().__class__.__mro__[1].__subclasses__()",
        f"{{'__reduce__': open({str(canary)!r}, 'w')}}",
        "f'{open}'",
        "lambda: 0",
        "1 if 2 else 3",
        "9**9**9",
        "<!ENTITY x SYSTEM 'file:///etc/passwd'>&x;",
    ]
    draw = random.Random(5)
    for number in range(10_000):
        family = FAMILIES[number % len(FAMILIES)]
        text = draw.choice([each.text for each in SAMPLES if each.family == family])
        for _ in range(draw.randrange(1, 4)):
            place = draw.randrange(len(text) + 1)
            text = text[:place] + draw.choice(code) + text[place + draw.randrange(4) :]
        whole = parse_text(tool_parser(family), text)
        if number % 8 == 0:
            assert chunked(tool_parser(family), cut(text, [draw.randrange(len(text) + 1) for _ in range(3)])) == whole
        assert whole.tool_calls or whole.content == text
    assert not canary.exists()


@pytest.mark.parametrize(
    "payload",
    [
        '{"name": "f", "name": "g", "arguments": {}}',
        '{"name": "", "arguments": {}}',
        '{"name": "\\ud800", "arguments": {}}',
        '{"name": "f", "arguments": "text"}',
        '{"name": "f", "arguments": null}',
        '{"name": "f", "parameters": [1]}',
        '{"name": ["f"], "arguments": {}}',
        '{"arguments": {}}',
        "{}",
        f'{{"name": "{"f" * 300}", "arguments": {{}}}}',
        "__import__('os').system('true')",
    ],
)
def test_what_is_no_call_stays_text(payload: str) -> None:
    text = f"<tool_call>{payload}</tool_call>"
    assert parse_text(tool_parser("hermes"), text) == TextDelta(text)


# ------------------------------------------------------------------------------------------------ streams


def test_text_comes_as_soon_as_it_is_certain() -> None:
    parser = tool_parser("hermes")
    assert [parser.feed(piece).content for piece in ("Hello", " wor", "ld <too", "ls>")] == [
        "Hello",
        " wor",
        "ld",
        " <tools>",
    ]
    reasoning = reasoning_parser("think")
    assert not reasoning.feed("<thi")
    assert [reasoning.feed(piece).reasoning for piece in ("nk>one", " two")] == ["one", " two"]
    assert reasoning.feed("</think>three").content == "three"


def test_a_call_comes_in_pieces_and_its_name_first() -> None:
    parser = tool_parser("hermes")
    told = [
        parser.feed(piece).tool_calls
        for piece in ("<tool_call>", '{"name": "add", "argu', 'ments": {', '"a"', ": 1", "}}")
    ]
    assert [[(each.index, each.name, each.arguments) for each in calls] for calls in told] == [
        [], [], [(0, "add", "{")], [(0, None, '"a"')], [(0, None, ": ")], [(0, None, "1}")],
    ]  # fmt: skip


def test_reasoning_then_calls() -> None:
    text = '<think>\nI <tool_call>\n</think>\n\nOk. <tool_call>{"name": "now"}</tool_call>'
    for chunks in cuts(text):
        parser = AnswerParser(reasoning_parser("think"), tool_parser("hermes"))
        assert chunked(parser, chunks) == expected("Ok.", "I <tool_call>", [("now", "{}")])
        assert parser.calls == 1
    assert chunked(AnswerParser(), cut(text, [5])) == TextDelta(text)
    assert chunked(AnswerParser(tools=tool_parser("glm45")), cut("plain", [2])) == TextDelta("plain")


# ------------------------------------------------------------------------------------------------ cost


def steps(parser: TextParser, text: str) -> int:
    """Function calls made for a text that comes character by character."""
    count = 0

    def profile(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += 1

    sys.setprofile(profile)
    try:
        for character in text:
            parser.feed(character)
        parser.finish()
    finally:
        sys.setprofile(None)
    return count


UNITS = [
    *("a", " ", "<", "{", "[", '"', "<tool_call>", "<tool_call></tool_call>", "<think>", "</think>", "[add(a="),
    *('<tool_call>{"name": "f", "x": "', '{"name": "add", "parameters": {}}; ', '<tool_call>{"arguments": {"a": "'),
    "<|channel|>commentary to=functions.",
]


@pytest.mark.parametrize("unit", UNITS)
def test_t06_work_is_linear(unit: str) -> None:
    makes: list[Callable[[], TextParser]] = [
        *(
            lambda family=family: tool_parser(family)
            for family in ("hermes", "llama3_json", "openai", "pythonic", "qwen3_coder")
        ),  # type: ignore[misc]
        lambda: reasoning_parser("openai_gptoss"),
    ]
    for make in makes:
        small, large = (steps(make(), (unit * length)[:length]) for length in (400, 3200))
        assert large < 10 * small


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("family", ["hermes", "openai", "qwen3_coder", "kimi_k2"])
def test_t06_what_waits_to_be_read_is_short(unit: str, family: str) -> None:
    parser = tool_parser(family)
    for character in (unit * 500)[:2000]:
        parser.feed(character)
        assert len(parser._reader._text) - parser._reader._at <= 64
