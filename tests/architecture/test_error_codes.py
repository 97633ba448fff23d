"""Every error code that can be raised is in the catalogue, and nothing else is."""

from __future__ import annotations

from pathlib import Path

import pytest

from bestiary.api import catalogue

from .error_codes import Found, raised

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "core/src/bestiary/api/data/codes"
STATUSES = {400, 401, 403, 404, 405, 408, 409, 413, 415, 422, 429, 500, 503}


@pytest.fixture(scope="module")
def source() -> Found:
    return raised(ROOT)


def test_every_code_can_be_read_from_the_source(source: Found) -> None:
    assert source.problems == []


def test_no_code_is_raised_that_is_not_explained(source: Found) -> None:
    assert len(source.raised) > 50
    assert {code: where[:2] for code, where in source.raised.items() if code not in catalogue.entries()} == {}


def test_none_is_explained_that_nothing_raises(source: Found) -> None:
    assert sorted(set(catalogue.entries()) - set(source.raised)) == []


def test_every_area_is_a_file_and_every_file_an_area() -> None:
    assert {file.stem for file in DATA.iterdir()} == set(catalogue.AREAS)


def test_a_code_has_one_entry_which_says_everything() -> None:
    headings = [line for file in DATA.iterdir() for line in file.read_text("utf-8").splitlines() if line[:1] == "["]
    assert len(headings) == len(set(headings)) == len(catalogue.entries())
    for each in catalogue.entries().values():
        assert each.status in STATUSES, each.code
        assert each.title and not each.title.endswith("."), each.code
        assert each.meaning.endswith(".") and each.remedy.endswith("."), each.code
        assert each.causes and not any(cause.endswith(".") for cause in each.causes), each.code


@pytest.mark.parametrize(
    ("text", "codes", "problems"),
    [
        ('raise UsageError("x")', ["USAGE"], 0),
        ('raise UsageError("x", code="MINE")', ["MINE"], 0),
        ('A, B = "FIRST", "SECOND"\nraise UsageError("x", code=A if y else B)', ["FIRST", "SECOND"], 0),
        ('def f():\n    x, code = 1, "LATE"\n    return UsageError("x", code=code)', ["LATE"], 0),
        ('def f(a, code):\n    raise UsageError(a, code=code)\nf(1, "AFAR")\nf(1, code="NEAR")', ["AFAR", "NEAR"], 0),
        ("read(x, error=UsageError)", ["USAGE"], 0),
        ('told = {"error": {"code": "SAID"}}', ["SAID"], 0),
        ('raise UsageError("x", code=error.error_code)', [], 0),
        ('raise UsageError("x", code=told["code"])', [], 0),
        ('class Mine(UsageError):\n    code = "OWN_CODE"\nraise Mine("x")', ["OWN_CODE"], 0),
        ('def g(x):\n    return "FIRST" if x else "SECOND"\nraise UsageError("x", code=g(1))', ["FIRST", "SECOND"], 0),
        ('fail("NO_MEMORY: there is none")', ["NO_MEMORY"], 0),
        ('"""QUOTED: in prose."""', [], 0),
        ('SampledToken(-1, error="numerical")', ["NUMERICAL"], 0),
        ("isinstance(x, UsageError)", [], 0),
        ('raise UsageError("x", code=f())', [], 1),
        ('raise UsageError("x", code="lower")', [], 1),
    ],
)  # fmt: skip
def test_what_the_collector_sees(text: str, codes: list[str], problems: int, tmp_path: Path) -> None:
    api = tmp_path / "core/src/bestiary/api"
    api.mkdir(parents=True)
    (api / "errors.py").write_text('class UsageError(Exception):\n    code = "USAGE"\n')
    (api / "x.py").write_text(text)
    found = raised(tmp_path)
    assert (sorted(found.raised), len(found.problems)) == (codes, problems)
