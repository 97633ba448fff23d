"""Every kind of hostile input in the programme's table has a test, here or beside what it tests."""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from functools import cache
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from .elsewhere import ELSEWHERE
from .kinds import KINDS
from .test_table import GROUPS

ROOT = Path(__file__).parents[3]
HERE = {"E02": "oracle.py", "H06": "test_crowds.py", "H10": "test_crowds.py", "G08": "test_crowds.py",
        "K01": "test_crowds.py", "I02": "test_crowds.py", "I03": "test_crowds.py", "X02": "test_coverage.py",
        "C02": "test_start.py", "C07": "test_start.py", "M01": "test_start.py", "M08": "test_start.py",
        "P01": "test_start.py"}  # fmt: skip
FLOORS = {"torch": "2.10", "transformers": "5.10.1", "starlette": "1.3.1", "h11": "0.16", "minijinja": "3"}


@cache
def in_tables() -> Counter[str]:
    """Kind → inputs."""
    return Counter(row.id for group in GROUPS.values() for row in group.rows())


def test_every_kind_has_a_test():
    assert in_tables().keys() | HERE.keys() | ELSEWHERE.keys() == KINDS.keys()


def test_what_stands_elsewhere_is_there():
    for id_, (file, name) in ELSEWHERE.items():
        assert re.search(rf"^(?:    )?(?:async )?def {name}\(", (ROOT / file).read_text("utf-8"), re.MULTILINE), (
            id_,
            file,
            name,
        )
    for id_, name in HERE.items():
        assert id_ in Path(__file__).with_name(name).read_text("utf-8"), (id_, name)


def test_there_are_several_hundred_inputs_and_several_of_each_kind():
    assert in_tables().total() > 1000
    assert [id_ for id_, count in in_tables().items() if count < 3] == []


def test_no_dependency_may_be_older_than_its_last_known_hole(case):
    """X02: as declared, and as pinned for this repository's own tests."""
    project = tomllib.loads((ROOT / "core/pyproject.toml").read_text("utf-8"))["project"]
    declared = [
        *project["dependencies"],
        *(each for extra in project["optional-dependencies"].values() for each in extra),
    ]
    lowest = {
        found.name: min(Version(each.version) for each in found.specifier if each.operator == ">=")
        for found in map(Requirement, declared) if found.name in FLOORS
    }  # fmt: skip
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    for name, floor in FLOORS.items():
        assert lowest[name] >= Version(floor), name
        assert Version(pinned[name]) >= Version(floor), name
    assert Version(pinned.get("Jinja2", "3.1.6")) >= Version("3.1.6")
    case("X02", len(FLOORS) + 1)
