"""Servers and the oracle, one each for all tests, and the closing line."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .processes import Oracle, Server

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
os.environ.setdefault("BESTIARY_KERNELS", "torch")  # the oracle's numbers are those of dequantized weights
for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
    os.environ.pop(name, None)

figures: dict[str, Any] = {}
tried: dict[str, list[str]] = {}
failed: dict[str, list[str]] = {}


@pytest.fixture(scope="session")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Oracle]:
    made = Oracle(tmp_path_factory.mktemp("oracle") / "t0")
    yield made
    made.close()


@pytest.fixture(scope="session")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """`serve(model, *options)`: a server that listens; it ends with the session, if not before."""
    started: list[Server] = []

    def start(model: str | Path, *options: str) -> Server:
        started.append(Server(tmp_path_factory.mktemp("server"), str(model), *options))
        return started[-1]

    yield start
    for each in started:
        each.close()


@pytest.fixture(scope="session")
def t0(serve: Callable[..., Server], oracle: Oracle) -> Server:
    """T0 under the name "t0"."""
    return serve(oracle.model, "--served-model-name", "t0", "--max-num-seqs", "16").wait_ready()


@pytest.fixture(scope="session")
def pooling(serve: Callable[..., Server], oracle: Oracle) -> Server:
    """T0 as a model that makes embeddings."""
    return serve(oracle.model, "--served-model-name", "t0", "--runner", "pooling").wait_ready()


@pytest.fixture(scope="session")
def smollm2(serve: Callable[..., Server]) -> Server:
    """A model with something to say."""
    return serve("smollm2", "--max-model-len", "2048").wait_ready()


@pytest.fixture
def note() -> Callable[[str, Any], None]:
    """`note(name, figures)`: what the record is to say of a suite."""
    return figures.__setitem__


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed or (report.when == "call" and report.passed):
        file, _, case = report.nodeid.partition("::")
        (failed if report.failed else tried).setdefault(Path(file).stem.removeprefix("test_"), []).append(case)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    found = {kind: len(terminalreporter.stats.get(kind, [])) for kind in ("passed", "failed", "error", "skipped")}
    terminalreporter.line(
        f"clients: {found['passed']} cases good, {found['failed'] + found['error']} bad, {found['skipped']} left out"
    )
    reasons = {str(each.longrepr[-1]) for each in terminalreporter.stats.get("skipped", [])}
    for reason in sorted(reasons):
        terminalreporter.line(f"LEFT OUT: {reason}", red=True, bold=True)
    if os.environ.get("BESTIARY_CLIENTS_RECORD"):
        Path(os.environ["BESTIARY_CLIENTS_RECORD"]).write_text(json.dumps(record(), indent=1) + "\n", "utf-8")


def record() -> dict[str, Any]:
    """What was tried, with which versions."""
    names = ("openai", "litellm", "langchain-openai", "llm", "schemathesis", "lm-eval")
    package = json.loads((Path(__file__).with_name("node") / "package.json").read_text("utf-8"))
    return {
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in names},
        "node_versions": package["dependencies"],
        "passed": {name: len(cases) for name, cases in tried.items()},
        "cases": tried,
        "failed": failed,
        "figures": figures,
    }
