"""Every row of the tables against a running server."""

from pathlib import Path

import pytest

from . import grammar, http, lora, requests, templates
from .row import Row

GROUPS = {"requests": requests, "http": http, "templates": templates, "lora": lora, "grammar": grammar}


@pytest.fixture(scope="module")
def warm(stage, run):
    """What the first requests make for all that follow belongs to no group's growth."""
    first: dict[str, Row] = {}
    for group in GROUPS.values():
        for row in group.rows():
            first.setdefault(row.id, row)
    run(stage.run(first.values()))


@pytest.mark.parametrize("name", GROUPS)
def test_group(stage, run, warm, case, name):
    report = run(stage.run(GROUPS[name].rows()))
    assert report.wrong == [], "\n".join(report.wrong)
    for id_, count in report.inputs().items():
        case(id_, count)
    case(name, len(report.verdicts), **report.figures)
    assert not list(Path().glob("evil-was-here"))
