"""`read_json` against hostile files (TRUST rows C08, and C07's number that no float holds)."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bestiary.api.errors import ConfigError, CorruptWeights
from bestiary.engine.loader.config_json import MAX_CONFIG_BYTES, MAX_DEPTH, MAX_QUOTES, parse_json_object, read_json


def refused(path: Path, **options: Any) -> ConfigError:
    begun = time.process_time()
    with pytest.raises(ConfigError) as caught:
        read_json(path, **options)
    assert time.process_time() - begun < 2
    assert caught.value.error_code == "BAD_CONFIG"
    assert str(path) in (caught.value.field or "")
    assert caught.value.limit or caught.value.fix
    return caught.value


def written(tmp_path: Path, content: str | bytes) -> Path:
    path = tmp_path / "config.json"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_reads_an_ordinary_file_and_a_link_to_it(tmp_path: Path) -> None:
    path = written(tmp_path, '{"a": [1, 2.5, null, true, "é"], "b": {}}')
    link = tmp_path / "link.json"
    link.symlink_to(path)
    assert read_json(path) == read_json(str(link)) == {"a": [1, 2.5, None, True, "é"], "b": {}}


def test_two_gigabytes_are_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(2 * 2**30)
    error = refused(path)
    assert error.value == 2 * 2**30
    assert str(MAX_CONFIG_BYTES) in str(error)


def test_the_cap_is_exact(tmp_path: Path) -> None:
    path = written(tmp_path, '{"a": 1}')
    assert read_json(path, max_bytes=8) == {"a": 1}
    assert refused(path, max_bytes=7).limit == "at most 7 bytes"


@pytest.mark.parametrize("opening", ["[", '{"a":', "[{", '{"a":['])
def test_depth_of_100_000_is_refused(tmp_path: Path, opening: str) -> None:
    error = refused(written(tmp_path, '{"x": ' + opening * 100_000))
    assert str(MAX_DEPTH) in str(error)


def test_depth_is_counted_outside_strings_only(tmp_path: Path) -> None:
    text = {"template": '[[[["{' * 10_000, "quoted": '\\"[' * 1000}
    assert read_json(written(tmp_path, json.dumps(text))) == text
    deepest = "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1)
    assert read_json(written(tmp_path, f'{{"a": {deepest}}}'))
    refused(written(tmp_path, f'{{"a": [{deepest}]}}'))


def test_worst_cases_of_16_mib_take_less_than_two_seconds(tmp_path: Path) -> None:
    half = MAX_CONFIG_BYTES // 2 - 8
    assert "too many values" in str(refused(written(tmp_path, '{"a": [' + "[]" * half)))
    refused(written(tmp_path, '{"a": "' + "\\" * (2 * half)))
    assert "too many strings" in str(refused(written(tmp_path, '{"' + '"{"' * (half // 2))))
    few_enough = MAX_QUOTES // 2 - 2
    refused(written(tmp_path, "{" + '""' * few_enough + " " * half))


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e400", "-1e999", "1" * 65])
def test_numbers_that_are_none_are_named(tmp_path: Path, literal: str) -> None:
    error = refused(written(tmp_path, f'{{"rope": {{"factors": [1.0, {literal}]}}}}'))
    assert error.value == literal
    assert (error.field or "").endswith("rope.factors[1]")


@pytest.mark.parametrize("content", ['{"a": 1, "a": 1}', '{"a": 1, "b": 2, "\\u0061": 3}'])
def test_a_name_given_twice(tmp_path: Path, content: str) -> None:
    error = refused(written(tmp_path, content))
    assert error.value == "a"
    assert error.limit == "each name once in an object"


def test_a_name_given_twice_deep_inside(tmp_path: Path) -> None:
    error = refused(written(tmp_path, '{"text_config": [{"x": 1}, {"y": 1, "y": 2}]}'))
    assert (error.field or "").endswith("text_config[1].y")


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"\xff\xfe{\x00}\x00", "UTF-8"),
        ('{"a": "é"}'.encode("latin-1"), "UTF-8"),
        (b'\xef\xbb\xbf{"a": 1}', "one JSON object"),
        (b"", "one JSON object"),
        (b"{", "one JSON object"),
        (b'{"a": 1}}', "one JSON object"),
        (b"{'a': 1}", "one JSON object"),
        (b'{"a": "\\ud800"}', "Unicode text without lone surrogates"),
        (b'{"\\udfff": 1}', "Unicode text without lone surrogates"),
        (b"[]", "an object at the top"),
        (b"null", "an object at the top"),
        (b'"text"', "an object at the top"),
        (b"7", "an object at the top"),
    ],
)
def test_what_is_not_a_json_object_in_utf8(tmp_path: Path, content: bytes, rule: str) -> None:
    assert refused(written(tmp_path, content)).limit == rule


def test_only_regular_files(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    zero = tmp_path / "zero"
    zero.symlink_to("/dev/zero")
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    assert refused(fifo).value == "a FIFO"
    assert refused(zero).value == "a device"
    assert refused(tmp_path).value == "a directory"
    assert "cannot be read" in str(refused(loop))
    assert "cannot be read" in str(refused(tmp_path / "absent.json"))


def test_errors_are_of_the_callers_class() -> None:
    with pytest.raises(CorruptWeights, match=r"not JSON"):
        parse_json_object(b"{", name="model.safetensors", error=CorruptWeights)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
SCALARS = st.none() | st.booleans() | st.integers(-(10**60), 10**60) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    SCALARS | TEXT, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4), max_leaves=12
)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(TEXT, VALUES, max_size=5), st.booleans())
def test_agrees_with_the_standard_library(value: dict[str, Any], ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert parse_json_object(text.encode(), name="x") == json.loads(text) == value


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60) | st.text(alphabet='{}[]",:\\ 10eENaIfu.-', max_size=60).map(str.encode))
def test_any_bytes_give_an_object_or_one_error(data: bytes) -> None:
    error = None
    try:
        value = parse_json_object(data, name="x")
    except ConfigError as caught:
        error = caught
    if error is None:
        assert value == json.loads(data)
    else:
        assert (error.field or "").startswith("x")
        assert error.limit
