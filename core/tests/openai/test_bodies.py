"""Bodies as bytes: what is no JSON object, or comes in another form, is refused with its place."""

from __future__ import annotations

import gzip
import json

import pytest

from bestiary.api.errors import RequestError
from bestiary.serve.openai.body import MAX_NODES, MAX_VALUES, parse_object

from .conftest import JSON

PATH = "/v1/completions"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "EOF"),
        (b"not json", "line 1 column 2"),
        (b"null", "no JSON object"),
        (b"[]", "no JSON object"),
        (b'"x"', "no JSON object"),
        (b"7", "no JSON object"),
        (b'"' + b"x" * 2**20 + b'"', "no JSON object"),
        (b"[" * 10**4, "recursion limit"),
        (b'{"a":' * 10**4, "recursion limit"),
        (b'{"a": 1, "a": 2}', "stands twice"),
        (b'{"a": {"b": ":", "b": 2}}', "stands twice"),
        (b'{"a": 1, "\\u0061": 2}', "stands twice"),
        (b'{"a": NaN}', "line 1 column 7"),
        (b'{"a": -Infinity}', "line 1"),
        (b'{"a": [1e999]}', "too large"),
        ('{"prompt": "x"}'.encode("utf-16"), "line 1 column 1"),
        (b'\xef\xbb\xbf{"prompt": "x"}', "line 1 column 1"),
        (b'{"prompt": "\\ud800"}', "hex escape"),
        (b'{"prompt": "\xff"}', "unicode"),
        (b'{"prompt": "a\x00b"}', "control character"),
        (b'{"prompt": "x"} {}', "trailing"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "number out of range"),
    ],
)
def test_what_is_no_json_object(ask, body, words):
    error = ask("POST", PATH, content=body, headers=JSON)
    assert (error.status_code, error.json()["error"]["code"]) == (400, "BAD_JSON")
    assert words in error.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "limit"),
    [
        (b'{"a": [' + b"1," * (MAX_VALUES + 1) + b"1]}", f"at most {MAX_VALUES}"),
        (b'{"a": [' + b"{}," * (MAX_NODES - 3) + b"{}]}", f"at most {MAX_NODES}"),
        (b'{"a": [' + b"[]," * MAX_NODES + b"1]}", f"at most {MAX_NODES}"),
        (json.dumps({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}] * 1000}] * 240}).encode(),
         f"at most {MAX_NODES}"),
        (json.dumps({f"f{number}": 1 for number in range(MAX_NODES)}).encode(), f"at most {MAX_NODES}"),
    ],
)  # fmt: skip
def test_what_holds_too_much_is_refused_before_it_is_read(ask, body, limit):
    error = ask("POST", PATH, content=body, headers=JSON)
    assert (error.status_code, error.json()["error"]["code"]) == (400, "JSON_LIMIT")
    assert limit in error.json()["error"]["message"]


def test_what_stands_in_strings_is_no_structure():
    document = {"prompt": '{"a": [1, 2]},' * MAX_NODES, "quoted": '\\":{[,' * MAX_NODES}
    assert parse_object(json.dumps(document).encode()) == document


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"a": {"b": [{"c": 1}, {"c": 2}], "a": None}},
        {"a:b": 'x":"y', "\\": "\\:\\"},
        {"deep": [[[[{"x": [1.5, -0.0, True]}]]]]},
        {"s": "a\u0000b ü 🦁"},
    ],
)
def test_what_is_one_is_read_as_it_stands(document):
    assert parse_object(json.dumps(document).encode()) == document
    assert parse_object(json.dumps(document, ensure_ascii=False, indent=1).encode()) == document


def test_a_null_character_in_a_text_is_a_character(ask):
    assert ask("POST", PATH, content=b'{"prompt": "a\\u0000b"}', headers=JSON).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "application/json; charset=utf-7"},
        {"content-type": "application/json; charset=utf-16"},
        {"content-type": "application/jsonp"},
        {**JSON, "content-encoding": "gzip"},
        {**JSON, "content-encoding": "br, gzip"},
    ],
)
def test_other_forms_are_not_read(ask, headers):
    bomb = gzip.compress(b"0" * 2**20)
    response = ask("POST", PATH, content=bomb, headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (415, "UNSUPPORTED_MEDIA_TYPE")


@pytest.mark.parametrize(
    "kind", ["application/json", "Application/JSON; charset=UTF-8", 'application/json;charset="utf-8"']
)
def test_json_is_read_by_all_its_names(ask, kind):
    assert ask("POST", PATH, content=b'{"prompt": "x"}', headers={"content-type": kind}).status_code == 200


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_that_is_too_large(ask, announced):
    body = b'{"prompt": "' + b"x" * 3000 + b'"}'

    async def pieces():
        for start in range(0, len(body), 100):
            yield body[start : start + 100]

    response = ask("POST", PATH, content=body if announced else pieces(), headers=JSON, max_body=2000)
    assert (response.status_code, response.json()["error"]["code"]) == (413, "TOO_LARGE")
    assert "2000 bytes" in response.json()["error"]["message"]


def test_a_body_that_does_not_come(ask):
    async def slow():
        import asyncio

        yield b'{"prompt":'
        await asyncio.sleep(30)

    response = ask("POST", PATH, content=slow(), headers=JSON, read_timeout=0.05)
    assert (response.status_code, response.json()["error"]["code"]) == (408, "REQUEST_TIMEOUT")


def test_a_large_body_is_read_off_the_loop_and_refused_alike(ask):
    body = json.dumps({"prompt": "x" * 100_000})[:-1].encode()
    assert ask("POST", PATH, content=body, headers=JSON).json()["error"]["code"] == "BAD_JSON"
    with pytest.raises(RequestError):
        parse_object(body)
