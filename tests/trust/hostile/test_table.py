"""Every row of the tables against a running server."""

from pathlib import Path

import pytest

from . import grammar, http_rows, lora, request_rows, templates
from .row import FINE, Row

GROUPS = {"requests": request_rows, "http": http_rows, "templates": templates, "lora": lora, "grammar": grammar}


@pytest.fixture(scope="module")
def warm(stage, run):
    """What the first requests make for all that follow belongs to no group's growth."""
    first: dict[str, Row] = {}
    for group in GROUPS.values():
        for row in group.rows():
            first.setdefault(row.id, row)
    longest = [row for row in request_rows.rows() if row.id == "R02" and row.outcomes == (FINE,)]
    run(stage.run([*first.values(), *longest]))


@pytest.mark.parametrize("name", GROUPS)
def test_group(stage, run, warm, case, name):
    report = run(stage.run(GROUPS[name].rows()))
    for id_, count in report.inputs().items():
        case(id_, count)
    case(name, 0, **report.figures)
    assert report.wrong == [], "\n".join(report.wrong)
    assert not list(Path().glob("evil-was-here"))
