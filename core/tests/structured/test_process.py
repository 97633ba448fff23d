"""Hostile forms: refused in time, by code, in a process that may die of them; and the next question is answered."""

from __future__ import annotations

import json
import threading
import tracemalloc
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from bestiary.api.errors import RequestError
from bestiary.api.structured import StructuredOutputsParams, Vocabulary
from bestiary.engine.structured import child
from bestiary.engine.structured.process import GrammarProcess, Verdicts

from .vocabularies import byte_level, vocabulary_of

NEXT_RULES = "start: r0\n" + "\n".join(f'r{i}: r{i + 1} | "x"' for i in range(3000)) + '\nr3000: "y"'
DOUBLING = "start: T0\n" + "\n".join(f"T{i}: T{i + 1} T{i + 1}" for i in range(40)) + '\nT40: "y"'

HOSTILE: dict[str, tuple[dict[str, Any], set[str]]] = {
    "G01 no object": ({"json": "[]"}, {"BAD_SCHEMA"}),
    "G01 type": ({"json": {"type": "objekt"}}, {"BAD_SCHEMA"}),
    "G01 reference": ({"json": {"$ref": "#/$defs/a"}}, {"BAD_SCHEMA"}),
    "G01 remote reference": ({"json": {"$ref": "http://localhost/s"}}, {"BAD_SCHEMA"}),
    "G01 endless reference": ({"json": {"$ref": "#"}}, {"BAD_SCHEMA"}),
    "G01 ring": ({"json": {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}},
                 {"BAD_SCHEMA"}),
    "G02 unclosed": ({"regex": "(a"}, {"BAD_REGEX"}),
    "G02 look-ahead": ({"regex": "a(?=b)"}, {"BAD_REGEX"}),
    "G02 look-behind": ({"regex": "(?<!a)b"}, {"BAD_REGEX"}),
    "G02 back-reference": ({"regex": r"(a)\1"}, {"BAD_REGEX"}),
    "G02 backslash": ({"regex": "a\\\\\\"}, {"BAD_REGEX"}),
    "G02 in a schema": ({"json": {"properties": {"a": {"pattern": "(?=x)"}}}}, {"BAD_SCHEMA"}),
    "G04 counts": ({"regex": "(a{1,1000}){1,1000}"}, {"", "GRAMMAR_LIMIT"}),
    "G04 suffix": ({"regex": ".*a.{25}"}, {"", "GRAMMAR_LIMIT"}),
    "G04 stars": ({"regex": "(.*a){40}"}, {"", "GRAMMAR_LIMIT"}),
    "G04 long count": ({"regex": "a{1000000000}"}, {"", "GRAMMAR_LIMIT"}),
    "G04 counts of counts": ({"regex": "((a{1000}b){1000}c){1000}"}, {"", "GRAMMAR_LIMIT"}),
    "G04 nothing": ({"regex": r"[^\s\S]"}, {"BAD_REGEX"}),
    "G06 parentheses": ({"regex": "(" * 30_000 + "a" + ")" * 30_000}, {"GRAMMAR_LIMIT"}),
    "G06 parentheses, grammar": ({"grammar": "start: " + "(" * 30_000 + '"a"' + ")" * 30_000}, {"GRAMMAR_LIMIT"}),
    "G06 deep schema": ({"json": '{"items":' * 5000 + "{}" + "}" * 5000}, {"BAD_SCHEMA"}),
    "G06 left recursion": ({"grammar": 'start: x\nx: x "a" | "b"'}, {"", "GRAMMAR_LIMIT"}),
    "G06 infinite": ({"grammar": "start: x\nx: x"}, {"BAD_GRAMMAR"}),
    "G06 a stack overflows": ({"grammar": NEXT_RULES}, {"GRAMMAR_LIMIT"}),
    "G06 doubling": ({"grammar": DOUBLING}, {"GRAMMAR_LIMIT"}),
    "G07 minItems": ({"json": {"type": "array", "minItems": 10**9}}, {"GRAMMAR_LIMIT"}),
    "G07 minLength": ({"json": {"type": "string", "minLength": 10**9}}, {"GRAMMAR_LIMIT"}),
    "G07 enum": ({"json": {"enum": [f"{i:x}" for i in range(8000)]}}, {"", "GRAMMAR_LIMIT"}),
    "never compiled": ({"json": {"type": "integer", "multipleOf": 9_999_991}}, {"GRAMMAR_LIMIT"}),
    "contradiction": ({"json": {"type": "string", "minLength": 3, "maxLength": 2}}, {"BAD_SCHEMA"}),
    "keyword": ({"json": {"type": "array", "uniqueItems": True}}, {"BAD_SCHEMA"}),
}  # fmt: skip
LARGE = {
    "properties": {f"p{i}": {"type": "string", "maxLength": 40} for i in range(200)},
    "additionalProperties": False,
    "type": "object",
}
HARMLESS: list[dict[str, Any]] = [
    {"json": LARGE},
    {"json": {"type": "array", "maxItems": 10**9, "items": {"type": "string", "maxLength": 10**9}}},
    {"choice": [f"choice number {i}" for i in range(1000)]},
    {"json_object": True},
    {"regex": r"(\p{L}{1,100} ){1,100}"},
]


@pytest.fixture(scope="module")
def process() -> Iterator[GrammarProcess]:
    made = GrammarProcess(lambda: vocabulary_of(byte_level()))
    yield made
    made.close()


def code_of(process: GrammarProcess, form: dict[str, Any]) -> str:
    """What it is refused with, which tells nothing of this machine; "" where it passes."""
    try:
        process.check(StructuredOutputsParams(**form))
    except RequestError as error:
        shown = str(error)
        leaks = any(word in shown for word in ("Traceback", "0x", ".py", "/" + "usr"))
        told = str(error.field).startswith("structured_outputs.") and len(shown) < 1500 and not leaks
        return error.error_code if told else shown
    return ""


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_form_is_refused_or_harmless(process: GrammarProcess, name: str) -> None:
    form, codes = HOSTILE[name]
    assert code_of(process, form) in codes
    assert code_of(process, {"regex": "a"}) == ""


@pytest.mark.parametrize("form", HARMLESS)
def test_large_forms_pass(process: GrammarProcess, form: dict[str, Any]) -> None:
    assert code_of(process, form) == ""


def test_the_child_lives_as_long_as_its_owner_wants() -> None:
    process = GrammarProcess(lambda: vocabulary_of(byte_level()))
    assert process.pid is None
    process.check(StructuredOutputsParams(regex="a"))
    first = psutil.Process(process.pid)
    assert code_of(process, {"grammar": NEXT_RULES}) == "GRAMMAR_LIMIT"
    process.check(StructuredOutputsParams(regex="b"))
    second = psutil.Process(process.pid)
    assert first.pid != second.pid and not first.is_running()
    process.close()
    assert process.pid is None and not second.is_running()
    assert not [each for each in psutil.Process().children() if each.pid in (first.pid, second.pid)]


def test_what_was_answered_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    process = GrammarProcess(lambda: vocabulary_of(byte_level()))
    asked = []
    monkeypatch.setattr(process._process, "ask", lambda request: asked.append(json.loads(request)) or {})
    params = StructuredOutputsParams(choice=["a", "b"])
    assert not process.knows(params)
    for _ in range(3):
        process.check(params)
    assert process.knows(params)
    assert asked == [{"json": None, "json_object": False, "regex": None, "grammar": None, "choice": ["a", "b"],
                      "disable_any_whitespace": False}]  # fmt: skip
    monkeypatch.setattr(process._process, "ask", lambda request: {"message": "no", "code": "BAD_REGEX"})
    for _ in range(2):
        with pytest.raises(RequestError, match="no"):
            process.check(StructuredOutputsParams(regex="x"))
    with pytest.raises(RequestError, match="no"):
        process.knows(StructuredOutputsParams(regex="x"))


def test_answers_take_no_more_room_than_they_may() -> None:
    """As the interpreter counts it, whatever kind of answers there are."""
    for verdict in ({}, {"message": "no", "code": "BAD_REGEX", "limit": None, "details": {"pointer": "/a/b"}}):
        tracemalloc.start()
        verdicts = Verdicts(limit=2**18)
        for index in range(2000):
            verdicts.keep(index.to_bytes(32, "little"), dict(verdict))
        taken = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert 2**16 < taken < 2**18
        assert verdicts.size <= 2**18


def test_the_oldest_answers_go() -> None:
    verdicts = Verdicts(limit=8000)
    for index in range(100):
        verdicts.keep(index.to_bytes(32, "little"), {"message": "x" * (index % 50)})
    assert verdicts.get((99).to_bytes(32, "little")) is not None
    assert verdicts.get((0).to_bytes(32, "little")) is None
    verdicts.keep(b"k" * 32, {})
    for index in range(100):
        assert verdicts.get(b"k" * 32) == {}, "what is asked for is kept"
        verdicts.keep(index.to_bytes(32, "big"), {"message": "x" * 40})
    verdicts.keep(b"l" * 32, {"message": "x" * 9000})
    assert verdicts.size == 0


def test_several_threads_may_ask(process: GrammarProcess) -> None:
    """The rows of G08, as far as one process of ours goes."""
    found: list[str] = []
    forms = [{"regex": f"[a-z]{{{count}}}"} for count in range(1, 25)] + [HOSTILE["G02 unclosed"][0]] * 8
    threads = [threading.Thread(target=lambda form=form: found.append(code_of(process, form))) for form in forms]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(found) == [""] * 24 + ["BAD_REGEX"] * 8


def test_a_backend_that_cannot_be_made_refuses_every_form() -> None:
    for vocabulary, backend, code in (
        (Vocabulary('{"model": {}}', 5, ()), "llguidance", "STRUCTURED_OUTPUTS_UNAVAILABLE"),
        (vocabulary_of(byte_level()), "llguidence", "USAGE"),
    ):
        process = GrammarProcess(lambda vocabulary=vocabulary: vocabulary, backend)
        with pytest.raises(RequestError) as caught:
            process.check(StructuredOutputsParams(regex="a"))
        assert caught.value.error_code == code
        process.close()


def test_an_answers_beginning_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    class Grammar:
        def allowed_tokens(self) -> bytes:
            return bytes([0b10110010, 0b1000])

        def accept_token(self, token_id: int) -> None:
            tried.append(token_id)
            if len(tried) == 4:
                raise RequestError("enough", code="GRAMMAR_LIMIT")

    with pytest.raises(RequestError, match="enough"):
        child.try_out(Grammar(), Vocabulary("", 11, (1,)))
    assert tried == [7, 4, 7, 4]
