"""The page on serving lists the endpoints and figures that there are."""

from __future__ import annotations

import re
from pathlib import Path

from bestiary.serve.openai.metrics import METRICS
from bestiary.serve.openai.routes import ENDPOINTS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")


def test_endpoints() -> None:
    found = re.findall(r"^\| (GET|POST) \| `([^`]+)` \|", PAGE, re.MULTILINE)
    assert sorted(found) == sorted((each.method, each.path.replace(":path", "")) for each in ENDPOINTS)


def test_figures() -> None:
    found = re.findall(r"^\| `(bestiary_\w+)(\{[\w,]+\})?` \| (\w+) \| (.*) \|$", PAGE, re.MULTILINE)
    labels = {each.name: "{" + ",".join(each.labels) + "}" if each.labels else "" for each in METRICS}
    assert found == [(each.name, labels[each.name], each.kind, each.help) for each in METRICS]
