"""`bestiary explain`: every code, near misses, and the catalogue that it reads."""

from __future__ import annotations

import click
import pytest

from bestiary.api import catalogue, errors
from bestiary.api.errors import UsageError
from bestiary.serve.cli import failures
from bestiary.serve.cli.explain import explain

from .conftest import Run


def test_a_code_is_explained(bestiary: Run) -> None:
    result = bestiary("explain", "QUEUE_FULL")
    found = catalogue.entry("QUEUE_FULL")
    assert (result.code, result.err) == (0, "")
    flat = " ".join(result.out.split())
    for text in (found.code, found.title, found.meaning, *found.causes, found.remedy, "HTTP status: 503"):
        assert text in flat
    assert max(map(len, result.out.splitlines())) <= 100


@pytest.mark.parametrize("written", ["queue_full", "Queue-Full", " QUEUE  FULL"])
def test_case_and_dashes_do_not_matter(written: str, bestiary: Run) -> None:
    assert bestiary("explain", written).out.startswith("QUEUE_FULL: ")


@pytest.mark.parametrize(
    ("written", "suggested"),
    [("CONTEXT_LENGHT_EXCEEDED", "CONTEXT_LENGTH_EXCEEDED"), ("gguf", "CORRUPT_GGUF"), ("QUEUEFUL", "QUEUE_FULL")],
)
def test_a_near_miss_is_suggested(written: str, suggested: str, bestiary: Run) -> None:
    result = bestiary("explain", written)
    assert (result.code, result.out) == (1, "")
    assert "did you mean" in result.err and suggested in result.err


def test_what_resembles_nothing_is_pointed_to_the_list(bestiary: Run) -> None:
    assert "lists all codes" in bestiary("explain", "zzz").err


def test_all_are_listed(bestiary: Run) -> None:
    listed = [line.split()[0] for line in bestiary("explain").out.splitlines() if line and line[0].isupper()]
    assert listed == list(catalogue.entries())


def test_as_data(bestiary: Run) -> None:
    one = bestiary("explain", "gated", "--json").data
    assert one["code"] == "GATED" and isinstance(one["causes"], list) and one["status"] == 500
    assert one in bestiary("explain", "--json").data


def test_codes_complete() -> None:
    items = explain.params[0].shell_complete(click.Context(explain), "rank_")
    assert {item.value for item in items} == {"RANK_DIED", "RANK_FAILED", "RANK_STALLED"}
    assert all(item.help for item in items)


def test_the_catalogue_in_python() -> None:
    assert catalogue.find("A_PLUGINS_OWN") is None
    with pytest.raises(UsageError, match="no error code"):
        catalogue.entry("A_PLUGINS_OWN")
    assert catalogue.entry(errors.ConfigError.code).status == 500


@pytest.mark.parametrize(
    ("error", "more"),
    [
        (errors.LoadError("x", code="GATED"), True),
        (UsageError("x"), False),
        (errors.LoadError("x", code="MINE"), False),
    ],
    ids=lambda value: getattr(value, "error_code", ""),
)
def test_a_person_is_told_where_more_is_written(
    error: errors.BestiaryError, more: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failures.report(error, debug=False, as_json=False)
    assert "explain" not in capsys.readouterr().err
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    failures.report(error, debug=False, as_json=False)
    assert ("bestiary explain GATED" in capsys.readouterr().err) == more
