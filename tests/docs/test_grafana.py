"""The Grafana dashboard is what its script writes, and asks for metrics that the server has, each by its kind."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from bestiary.serve.openai.metrics import METRICS

from .grafana_dashboard import DASHBOARD, WIDTH, dashboard

NAME = re.compile(r"\bbestiary_\w+")
SERIES = {
    "histogram": ("_bucket", "_sum", "_count"),
    "summary": ("_sum", "_count"),
    "counter": ("",),
    "gauge": ("",),
}
KINDS = {row.name + suffix: row.kind for row in METRICS for suffix in SERIES[row.kind]}


def panels() -> list[dict[str, Any]]:
    return [panel for panel in json.loads(dashboard())["panels"] if panel["type"] != "row"]


def expressions() -> Iterator[str]:
    for panel in panels():
        yield from (target["expr"] for target in panel["targets"])


def test_the_file_is_what_the_script_writes() -> None:
    assert DASHBOARD.read_text(encoding="utf-8") == dashboard(), "scripts/reference writes it anew"


def test_every_name_is_a_metric_and_every_metric_is_shown() -> None:
    asked = {name for expression in expressions() for name in NAME.findall(expression)}
    assert asked - set(KINDS) == set()
    shown = {row.name for row in METRICS if any(row.name + suffix in asked for suffix in SERIES[row.kind])}
    assert {row.name for row in METRICS} - shown == set()


def test_what_only_grows_is_shown_as_a_rate_and_nothing_else_is() -> None:
    for expression in expressions():
        for found in NAME.finditer(expression):
            growing = expression[: found.start()].endswith(("rate(", "increase("))
            assert growing == (KINDS[found[0]] != "gauge"), expression
        assert expression.count("(") == expression.count(")")


def test_labels_that_are_grouped_by_exist() -> None:
    labels = {row.name: {*row.labels, "instance"} | ({"le"} if row.kind == "histogram" else set()) for row in METRICS}
    for panel in panels():
        for target in panel["targets"]:
            used = set(re.findall(r"by \(([\w, ]+)\)", target["expr"])) | set(
                re.findall(r"{{(\w+)}}", target["legendFormat"])
            )
            names = {re.sub(r"_(bucket|sum|count)$", "", name) for name in NAME.findall(target["expr"])}
            wanted = {label for group in used for label in group.split(", ")}
            assert all(wanted <= labels[name] for name in names), target


def test_panels_fill_rows_without_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    everything = json.loads(dashboard())["panels"]
    for panel in everything:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken
        assert at["x"] + at["w"] <= WIDTH
        taken |= cells
    assert len({panel["id"] for panel in everything}) == len(everything)
    lowest = max(y for _, y in taken) + 1
    assert len(taken) == WIDTH * lowest


def test_every_panel_says_what_it_shows_and_can_be_asked_of_one_server() -> None:
    for panel in panels():
        assert panel["description"]
        assert panel["datasource"]["uid"] == "${source}"
        assert all(
            target["expr"].count("$instance") == len(NAME.findall(target["expr"])) for target in panel["targets"]
        )
