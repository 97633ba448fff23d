"""The child process of `bestiary certify`: pytest on the contracts, nothing else of pytest's around it.

    python -P -m bestiary.testing.certify.child FD PLAN

PLAN is a JSON file (`watch.plan`), FD a pipe's end for events, one JSON object a line, each with `event`:

    importing    contract                                            a contract's module is about to be imported
    problem      contract, message                                   it cannot be, or holds no checks
    unknown      names, known                                        checks were asked for that no contract has
    found        contract, architecture, configured, checks          what is going to run: [[check, variant], …]
    start        contract, check, variant
    end          contract, check, variant, status, seconds, message
    claims       architecture, claims                                what the class says it can do
    table        text                                                the support table for a README
    done                                                             the last one

A contract goes by its label: ``module:TestClass``, ``file.py:TestClass``, or `MADE_HERE` and the architecture's name
for one that is made here because the distribution has none: it is checked as far as no configuration is needed.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import pytest

from bestiary.testing.check import GIVEN_UP, NOT_APPLICABLE, NOT_CHECKED

from . import MADE_HERE

_MESSAGE_CHARS = 8000
_TRACEBACK_LINES = 24
_STATIC_FILE = "test_without_contract.py"

_CONTRACT_FILE = """\
from {module} import {name} as {alias}
"""
_STATIC_HEAD = "from bestiary.testing import ModelContract\n"
_STATIC_CLASS = """

class Test{number}(ModelContract):
    architecture = {architecture!r}
    config = None
"""


class Reporter:
    """A pytest plugin that keeps the wanted checks and turns what happens to them into events."""

    def __init__(self, plan: dict[str, Any], labels: dict[str, str], descriptor: int) -> None:
        self.plan = plan
        self.labels = labels
        self.contracts: dict[str, Any] = {}
        self.refused: set[str] = set()
        self._descriptor = descriptor
        self._seconds = 0.0
        self._verdict: tuple[str, str] = ("passed", "")
        self._current: dict[str, Any] = {}

    def send(self, event: str, **fields: Any) -> None:
        data = memoryview(json.dumps({"event": event, **fields}).encode() + b"\n")
        while data:
            data = data[os.write(self._descriptor, data) :]

    def pytest_collectstart(self, collector: pytest.Collector) -> None:
        if isinstance(collector, pytest.Module):
            self.send("importing", contract=self._file_label(collector.path))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            label = self._file_label(Path(report.nodeid.partition("::")[0]))
            self.refused.add(label)
            self.send("problem", contract=label, message=_cut(str(report.longreprtext)))

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        by_contract: dict[str, list[pytest.Function]] = {}
        for item in items:
            if isinstance(item, pytest.Function) and getattr(item.cls, "is_contract", False):
                by_contract.setdefault(self._label(item), []).append(item)
        self.contracts = {label: found[0].cls for label, found in by_contract.items() if found[0].cls is not None}
        empty = set(self.labels.values()) - set(by_contract) - self.refused - {""}
        for label in sorted(empty):
            self.send("problem", contract=label, message="this is no contract: a subclass of ModelContract has checks")
        known = {name for cls in self.contracts.values() for name in cls.checks()}
        unknown = sorted(set(self.plan["checks"]) - known)
        if unknown:
            self.send("unknown", names=unknown, known=sorted(known))
        kept: list[pytest.Function] = []
        for label, found in by_contract.items():
            wanted = [item for item in found if self._wanted(label, item)]
            kept += wanted
            self._announce(label, wanted)
        items[:] = kept

    def _announce(self, label: str, wanted: Sequence[pytest.Function]) -> None:
        if not wanted:
            return
        cls = self.contracts[label]
        self.send(
            "found",
            contract=label,
            architecture=cls.architecture,
            configured=cls.config is not None,
            checks=[[_check(item), _variant(item)] for item in wanted],
        )

    def _wanted(self, label: str, item: pytest.Function) -> bool:
        name = _check(item)
        if self.plan["checks"] and name not in self.plan["checks"]:
            return False
        return not label.startswith(MADE_HERE) or name in self._static_checks(self.contracts[label])

    @property
    def declared(self) -> list[Any]:
        """The contracts that the distribution brings."""
        return [cls for label, cls in self.contracts.items() if not label.startswith(MADE_HERE)]

    def _static_checks(self, cls: Any) -> frozenset[str]:
        """Of an architecture without a contract: nothing if it has one after all, `found` if its class is another's."""
        values: dict[str, str] = self.plan["architectures"]
        covered = {each.architecture for each in self.declared}
        if cls.architecture in covered:
            return frozenset()
        earlier = [name for name in values if name in covered or name < cls.architecture]
        static: frozenset[str] = cls.static_checks - {"readme"}  # nothing is declared that a README could show
        return frozenset({"found"}) if values[cls.architecture] in map(values.get, earlier) else static

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._seconds, self._verdict = 0.0, ("passed", "")

    def pytest_runtest_setup(self, item: pytest.Function) -> None:
        self._current = {"contract": self._label(item), "check": _check(item), "variant": _variant(item)}
        self.send("start", **self._current)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Function, call: pytest.CallInfo[None]
    ) -> Generator[None, Any, Any]:
        report = yield
        self._seconds += report.duration
        if report.failed:
            self._verdict = "failed", _why(call, report)
        elif report.skipped and self._verdict[0] == "passed":
            self._verdict = _skipped(str(getattr(call.excinfo.value, "msg", "")) if call.excinfo else "")
        return report

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        status, message = self._verdict
        self.send("end", **self._current, status=status, seconds=round(self._seconds, 3), message=message)

    def _label(self, item: pytest.Function) -> str:
        label = self.labels.get(item.path.name, "")
        if item.path.name == _STATIC_FILE:
            cls: Any = item.cls
            return f"{MADE_HERE}{cls.architecture}"
        return label or f"{item.path.name}:{item.cls.__name__ if item.cls else ''}"

    def _file_label(self, path: Path) -> str:
        return self.labels.get(path.name) or path.name


def _check(item: pytest.Function) -> str:
    return (item.originalname or item.name).removeprefix("test_")


def _variant(item: pytest.Function) -> str:
    callspec = getattr(item, "callspec", None)
    return "" if callspec is None else str(callspec.id)


def _skipped(reason: str) -> tuple[str, str]:
    """Status and message of a check that pytest calls skipped."""
    for prefix, status in ((GIVEN_UP, "given_up"), (NOT_CHECKED, "not_run"), (NOT_APPLICABLE, "skipped")):
        if reason.startswith(prefix):
            return status, _cut(reason.removeprefix(prefix))
    return "skipped", _cut(reason or "no reason was given")


def _cut(text: str) -> str:
    return text if len(text) <= _MESSAGE_CHARS else text[: _MESSAGE_CHARS - 1] + "…"


def _why(call: pytest.CallInfo[None], report: pytest.TestReport) -> str:
    """What a check says of its failure; what nobody foresaw comes with the end of its traceback."""
    error = None if call.excinfo is None else call.excinfo.value
    if isinstance(error, AssertionError) and str(error):
        return _cut(str(error))
    lines = report.longreprtext.splitlines()
    return _cut("\n".join([f"{type(error).__name__}: {error}", *lines[-_TRACEBACK_LINES:]]))


def write_tests(plan: dict[str, Any], folder: Path) -> dict[str, str]:
    """Files for pytest, one a contract, so that one that cannot be imported spoils no other; file name → label."""
    labels = {}
    for number, value in enumerate(plan["contracts"].values()):
        module, _, attribute = value.partition(":")
        path = folder / f"test_{number}.py"
        path.write_text(_CONTRACT_FILE.format(module=module.strip(), name=attribute.strip(), alias=f"Test{number}"))
        labels[path.name] = value
    classes = [
        _STATIC_CLASS.format(number=number, architecture=name) for number, name in enumerate(plan["architectures"])
    ]
    (folder / _STATIC_FILE).write_text(_STATIC_HEAD + "".join(classes))
    (folder / "pytest.ini").write_text("[pytest]\n")
    return labels | {_STATIC_FILE: ""}


def _tell_claims(reporter: Reporter) -> None:
    from bestiary.api.conformance import capabilities
    from bestiary.api.errors import BestiaryError
    from bestiary.api.registry import ModelRegistry

    for architecture in reporter.plan["architectures"]:
        try:
            info = capabilities(ModelRegistry.resolve([architecture]), architecture)
        except BestiaryError:
            continue  # the checks have said so
        claims = [*info.categories, *(name for name, value in info.as_dict().items() if value is True)]
        reporter.send("claims", architecture=architecture, claims=claims)


def _tell_table(reporter: Reporter) -> None:
    import bestiary.testing
    from bestiary.api.errors import BestiaryError

    if not reporter.declared:
        return
    try:
        table = bestiary.testing.support_table(reporter.declared)
    except BestiaryError:
        return  # a class that cannot be had: the checks have said so
    reporter.send("table", text=table)


def main(arguments: Sequence[str]) -> None:
    descriptor, plan = int(arguments[0]), json.loads(Path(arguments[1]).read_text(encoding="utf-8"))
    os.set_inheritable(descriptor, False)
    labels = write_tests(plan, Path.cwd())
    reporter = Reporter(plan, labels, descriptor)
    options = ["-q", "-p", "no:cacheprovider", "--noconftest", "-c", "pytest.ini", "--rootdir", ".", "--tb=short"]
    options += ["--import-mode=importlib", "--continue-on-collection-errors"]
    files = [*labels, *plan["files"]]
    pytest.main([*options, *files], plugins=[reporter])
    _tell_claims(reporter)
    _tell_table(reporter)
    reporter.send("done")
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
