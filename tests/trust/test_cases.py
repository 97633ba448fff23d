"""Every case of the programme has a test, every test names its case, and a record says what became of both."""

from __future__ import annotations

import json
import re
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import pytest

from . import run
from .cases import CLIENTS, PROGRAMMES, ROOT, functions_in, named_in
from .record import Found, document, write

OF_THE_TABLES = {"test_cases.py", "test_coverage.py"}
HERE = {name: each for name, each in PROGRAMMES.items() if name != "hostile"}  # that has `hostile/test_coverage.py`


@pytest.mark.parametrize("name", list(HERE))
def test_every_case_is_named_by_a_test(name):
    programme = PROGRAMMES[name]
    named = set().union(*(ids for file in programme.files for ids in named_in(ROOT / file).values()))
    assert programme.cases.keys() - named - programme.elsewhere.keys() == set()
    assert programme.elsewhere.keys() <= programme.cases.keys()


def test_every_test_says_which_case_it_tries():
    silent = [
        f"{file.name}::{test}"
        for file in ROOT.glob("tests/trust/**/test_*.py") if file.name not in OF_THE_TABLES
        for test, text in functions_in(file) if not re.search(r"\bcase\b", text)
    ]  # fmt: skip
    assert silent == []


def test_every_file_belongs_to_a_programme():
    files = {file for each in HERE.values() for file in each.files}
    there = {file.relative_to(ROOT).as_posix() for file in ROOT.glob("tests/trust/test_*.py")}
    assert there - files == {"tests/trust/test_cases.py"}
    assert CLIENTS.cases.keys() == {file.stem.removeprefix("test_") for file in ROOT.glob("tests/clients/test_*.py")}


def test_what_is_tried_elsewhere_is_there():
    """Also where a class has inherited it."""
    inherited = "".join(file.read_text("utf-8") for file in ROOT.glob("core/src/bestiary/testing/checks/*.py"))
    for programme in PROGRAMMES.values():
        for place in (each for places in programme.elsewhere.values() for each in places):
            file, *within, test = place.split("::")
            text = (ROOT / file).read_text("utf-8")
            assert f"def {test}(" in (inherited if within else text), place
            assert all(name in text for name in within), place


# --- records ----------------------------------------------------------------------------------------------------------

NODE = "tests/trust/test_faults_of_ranks.py::test_a_rank_is_killed"


def reports(node, call="passed", setup="passed", said=()):
    """As pytest makes them."""
    properties = [("case", {"id": id_, "inputs": inputs, "figures": figures}) for id_, inputs, figures in said]
    for when, outcome in (("setup", setup), ("call", call), ("teardown", "passed")):
        if when != "call" or setup == "passed":
            facts = {f"{name}": outcome == name for name in ("passed", "failed", "skipped")}
            yield SimpleNamespace(
                nodeid=node, when=when, outcome=outcome, duration=0.5, user_properties=properties, **facts
            )


def found_in(*runs):
    found = Found(PROGRAMMES["faults"])
    for report in chain.from_iterable(runs):
        found.pytest_runtest_logreport(report)
    return found


def test_counts_are_added_and_measurements_ranged():
    found = found_in(
        reports(f"{NODE}[a]", said=[("F02", 3, {"deaths": 2, "seconds": 0.5, "gap": None, "by": {200: 3}})]),
        reports(f"{NODE}[b]", said=[("F02", 3, {"deaths": 1, "seconds": 0.25, "by": {200: 2, 503: 1}})]),
    )
    assert found.cases == {
        "F02": {
            "inputs": 6, "passed": 2, "failed": 0, "skipped": 0, "seconds": 3.0,
            "figures": {"deaths": 3, "seconds": [0.25, 0.5], "by": {"200": 5, "503": 1}},
        }
    }  # fmt: skip


@pytest.mark.parametrize("sizes", [(3, 30), (30, 3)])
def test_what_many_inputs_measured_is_kept(sizes):
    runs = [reports(NODE, said=[("F02", inputs, {"seconds": 1.0 / inputs, "deaths": inputs})]) for inputs in sizes]
    assert found_in(*runs).cases["F02"]["figures"] == {"seconds": [0.03333, 0.03333], "deaths": 33}


@pytest.mark.parametrize("how", [{"call": "failed"}, {"setup": "failed"}])
def test_a_test_that_fails_before_it_says_anything_counts_against_its_case(how):
    found = found_in(reports(NODE, **how))
    assert (found.cases["F02"]["passed"], found.cases["F02"]["failed"]) == (0, 1)
    assert (found.tests, found.failures) == ({"passed": 0, "failed": 1, "skipped": 0}, [NODE])


def test_what_is_skipped_was_not_tried():
    found = found_in(reports(NODE, setup="skipped"))
    assert (found.cases["F02"]["inputs"], found.cases["F02"]["skipped"]) == (0, 1)
    assert found.tests["passed"] == 0


def test_what_is_tried_elsewhere_counts_as_one_input_each():
    found = Found(PROGRAMMES["exactness"])
    for variant in ("a", "b"):
        node = f"plugins/llama_plugin/tests/test_llama.py::TestLlama::test_logits[{variant}]"
        for report in reports(node):
            found.pytest_runtest_logreport(report)
    assert {id_: case["inputs"] for id_, case in found.cases.items()} == {"EX8": 2}


@pytest.mark.parametrize(("code", "tests"), [(0, 0), (2, 1), (5, 0)])
def test_nothing_is_recorded_where_nothing_ran_to_the_end(code, tests, monkeypatch):
    monkeypatch.setattr(run, "write", lambda record: pytest.fail("written"))
    cases = found_in(*[reports(NODE)] * tests).cases
    record = document("faults", "fast", "command", 1.0, cases, tests={"passed": tests, "failed": 0, "skipped": 0})
    assert run.conclude(code, record, keep=True) != 0


def test_a_record_names_its_run_and_no_machine(tmp_path):
    found = found_in(reports(NODE), reports(f"{NODE}[b]", call="failed"))
    record = document(
        "faults", "full", run.command("faults", "full", []), 61.4, found.cases, tests=found.tests,
        failures=found.failures,
    )  # fmt: skip
    path = write(record, tmp_path)
    assert path.name == f"{record['date']}-faults.json"
    kept = json.loads(path.read_text("utf-8"))
    assert kept["command"] == "scripts/trust faults --tier full --record"
    assert (kept["seconds"], kept["inputs"], kept["failures"]) == (61, 2, [f"{NODE}[b]"])
    assert {"commit", "cpu", "cores", "memory_gib", "python", "versions"} <= kept["environment"].keys()


def test_clients_are_counted_from_their_own_record(monkeypatch):
    def clients(command, *, env, check):
        kept = {
            "cases": {"openai": ["a", "b"]}, "failed": {"openai": ["c"], "litellm": ["d"]}, "figures": {},
            "versions": {"openai": "1"},
        }  # fmt: skip
        Path(env["BESTIARY_CLIENTS_RECORD"]).write_text(json.dumps(kept))
        return SimpleNamespace(returncode=1)

    monkeypatch.setattr(run.subprocess, "run", clients)
    monkeypatch.setattr(run, "document", lambda *facts, **parts: {"cases": facts[4], **parts})
    code, record = run.run_clients("clients", "fast", [])
    assert (code, record["tests"], record["failures"]) == (1, {"passed": 2, "failed": 2}, ["c", "d"])
    assert (record["cases"]["openai"]["inputs"], record["cases"]["litellm"]["failed"]) == (3, 1)
