"""`StructuredOutputsParams`: one form, of bounded size, that travels."""

from __future__ import annotations

import math

import pytest

from bestiary import SamplingParams, StructuredOutputsParams
from bestiary.api.errors import RequestError
from bestiary.engine.parallel.messages import AddRequest, Tick, decode_tick, encode

LONG = 64 * 1024
SCHEMA = {"type": "object", "properties": {"ä": {"type": "string"}}}


@pytest.mark.parametrize(
    ("given", "field", "code"),
    [
        ({}, "structured_outputs", "BAD_REQUEST"),
        ({"json_object": False}, "structured_outputs", "BAD_REQUEST"),
        ({"regex": "a", "json": "{}"}, "structured_outputs", "BAD_REQUEST"),
        ({"json_object": True, "choice": ["a"]}, "structured_outputs", "BAD_REQUEST"),
        ({"json_object": 1}, "structured_outputs.json_object", "BAD_REQUEST"),
        ({"json": []}, "structured_outputs.json", "BAD_SCHEMA"),
        ({"json": True}, "structured_outputs.json", "BAD_SCHEMA"),
        ({"json": {"const": math.nan}}, "structured_outputs.json", "BAD_SCHEMA"),
        ({"json": {"const": object()}}, "structured_outputs.json", "BAD_SCHEMA"),
        ({"json": "x" * (LONG + 1)}, "structured_outputs.json", "GRAMMAR_LIMIT"),
        ({"json": {"enum": list(range(100_000))}}, "structured_outputs.json", "GRAMMAR_LIMIT"),
        ({"regex": ""}, "structured_outputs.regex", "BAD_REQUEST"),
        ({"regex": 5}, "structured_outputs.regex", "BAD_REQUEST"),
        ({"regex": "\ud800"}, "structured_outputs.regex", "BAD_REQUEST"),
        ({"regex": "ä" * (LONG // 2 + 1)}, "structured_outputs.regex", "GRAMMAR_LIMIT"),
        ({"grammar": "x" * (LONG + 1)}, "structured_outputs.grammar", "GRAMMAR_LIMIT"),
        ({"choice": []}, "structured_outputs.choice", "BAD_REQUEST"),
        ({"choice": "ab"}, "structured_outputs.choice", "BAD_REQUEST"),
        ({"choice": ["a", ""]}, "structured_outputs.choice", "BAD_REQUEST"),
        ({"choice": ["a", 1]}, "structured_outputs.choice", "BAD_REQUEST"),
        ({"choice": ["a"] * 1001}, "structured_outputs.choice", "BAD_REQUEST"),
        ({"choice": ["a" * 40_000, "b" * 40_000]}, "structured_outputs.choice", "BAD_REQUEST"),
        (
            {"json_object": True, "disable_any_whitespace": "no"},
            "structured_outputs.disable_any_whitespace",
            "BAD_REQUEST",
        ),
        ({"jsn": "{}"}, "structured_outputs", "BAD_REQUEST"),
    ],
)
def test_what_is_no_form_is_refused(given: dict[str, object], field: str, code: str) -> None:
    with pytest.raises(RequestError) as caught:
        SamplingParams(structured_outputs=given)  # type: ignore[arg-type]
    assert (caught.value.field, caught.value.error_code) == (field, code)
    assert len(str(caught.value)) < 1000


def test_what_is_neither_a_mapping_nor_parameters_is_refused() -> None:
    with pytest.raises(RequestError):
        SamplingParams(structured_outputs="json")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "given",
    [{"json": SCHEMA}, {"json": "{}"}, {"json_object": True}, {"regex": "a+"}, {"grammar": 'start: "a"'},
     {"choice": ["a", "b"], "disable_any_whitespace": True}],
)  # fmt: skip
def test_a_form_arrives_as_it_was_sent(given: dict[str, object]) -> None:
    params = StructuredOutputsParams(**given)  # type: ignore[arg-type]
    assert params.form == next(iter(given))
    request = AddRequest("r", (1, 2), SamplingParams(n=2, structured_outputs=params))
    (event,) = decode_tick(encode(Tick((request,)))).events
    assert event == request
    assert request.sampling.child(1).structured_outputs == params
    assert SamplingParams(structured_outputs=given) == SamplingParams(structured_outputs=params)  # type: ignore[arg-type]


def test_a_schema_is_kept_as_text_in_its_order() -> None:
    assert StructuredOutputsParams(json={"b": 1, "a": "ä"}).json == '{"b": 1, "a": "ä"}'
