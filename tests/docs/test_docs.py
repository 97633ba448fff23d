"""The documents say what is so: their blocks run, their links lead somewhere, their tables are complete."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

import bestiary.api
import bestiary.nn
from bestiary.engine.lanes import Lane

from . import benchmarks_page, errors_page, reference_page, reliability_page, vllm_page
from .run_document import blocks

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md"), *ROOT.glob("core/*.md"), *ROOT.glob("plugins/*/*.md")])
LATER = {DOCS / "benchmarks"}  # written by `bestiary bench`
RUNNER = Path(__file__).with_name("run_document.py")

CODE = re.compile(r"^```.*?^```$|`[^`\n]*`", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def run(folder: Path, *documents: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "BESTIARY_CACHE": str(folder / "cache"),
        "XDG_CONFIG_HOME": str(folder / "settings"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    for name in ("BESTIARY_PLUGINS", "BESTIARY_CONFIG"):
        environment.pop(name, None)
    command = [sys.executable, "-W", "error", str(RUNNER), *map(str, documents)]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.parametrize(
    "names",
    [
        ("docs/write-a-plugin.md",),
        ("docs/certify.md",),
        ("docs/cli.md",),
        ("docs/tools.md",),
        ("README.md", "docs/quickstart.md", "docs/embeddings.md", "docs/structured.md"),
    ],
)
def test_the_blocks_run_and_print_what_is_shown(names: tuple[str, ...], tmp_path: Path) -> None:
    done = run(tmp_path, *(ROOT / name for name in names))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("document", "complaint"),
    [
        ("```python\nprint(1 + 1)\n```\n```text\n3\n```\n", "line 1 shows"),
        ("```python raises\n1 + 1\n```\n", "says that it raises"),
        ("```python\n1 / 0\n```\n", "ZeroDivisionError"),
        ("```python file=a.py\nprint('b')\n```\n```console\n$ python a.py\nc\n```\n", "line 4 shows"),
        ("```console\n$ rm x\n```\n", "no such command"),
        ("```console not-run\n$ bestiary generate MODEL --max-tokns 3\n```\n", "--max-tokns"),
        ("```console\n$ bestiary generate\n```\n", "exit code 1"),
    ],
)
def test_a_wrong_document_is_found(document: str, complaint: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(document)
    done = run(tmp_path, page)
    assert done.returncode != 0
    assert complaint in done.stderr


def anchors(page: Path) -> set[str]:
    """As GitHub makes them: lower case, punctuation dropped, spaces to hyphens."""
    titles = HEADING.findall(re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken_links(page: Path) -> Iterator[str]:
    for link in LINK.findall(CODE.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if target in LATER:
            continue
        if not target.exists():
            yield f"{page.relative_to(ROOT)}: {link}: no such file"
        elif anchor and anchor not in anchors(target):
            yield f"{page.relative_to(ROOT)}: {link}: no such heading"


def test_every_link_leads_somewhere() -> None:
    assert len(PAGES) > 10
    assert [broken for page in PAGES for broken in broken_links(page)] == []


def test_a_broken_link_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text("# A title, twice\n[a](#a-title-twice) [b](#b) [c](page.md#a) [d](gone.md) `[e](code.md)`\n")
    assert [link.split(": ")[1] for link in broken_links(page)] == ["#b", "page.md#a", "gone.md"]


def test_the_index_and_the_decisions_are_complete() -> None:
    for folder in (DOCS, DOCS / "adr"):
        linked = set(LINK.findall((folder / "README.md").read_text(encoding="utf-8")))
        assert {page.name for page in folder.glob("*.md")} - {"README.md"} - linked == set()
    numbers = [int(page.name[:4]) for page in sorted((DOCS / "adr").glob("0*.md"))]
    assert numbers == list(range(1, len(numbers) + 1))
    for page in (DOCS / "adr").glob("0*.md"):
        text = page.read_text(encoding="utf-8")
        assert [f"**{part}.**" in text for part in ("Context", "Decision", "Rejected", "Consequences")] == [True] * 4


def test_the_reference_is_what_the_docstrings_say() -> None:
    text = (DOCS / "reference.md").read_text(encoding="utf-8")
    assert text == reference_page.page(), "scripts/reference writes it anew"
    for name in (*bestiary.api.__all__, *bestiary.nn.__all__):
        assert len(re.findall(rf"^### `{name}`$", text, re.MULTILINE)) == 1


def test_the_page_of_errors_is_what_the_catalogue_says() -> None:
    assert (DOCS / "errors.md").read_text(encoding="utf-8") == errors_page.page(), "scripts/reference writes it anew"


def test_the_page_of_vllms_symbols_is_current():
    assert (DOCS / "vllm-symbols.md").read_text(encoding="utf-8") == vllm_page.page(), (
        "scripts/reference writes it anew"
    )


def test_the_page_of_benchmarks_says_what_the_record_of_starts_says() -> None:
    text = benchmarks_page.PAGE.read_text(encoding="utf-8")
    assert benchmarks_page.TITLE in text
    assert text == benchmarks_page.page(), "scripts/reference writes it anew"


def test_the_page_of_reliability_is_what_the_records_say() -> None:
    assert reliability_page.PAGE.read_text(encoding="utf-8") == reliability_page.page(), (
        "scripts/reference writes it anew"
    )


def test_the_loop_in_the_architecture_is_the_engines_own() -> None:
    (loop,) = [each for each in blocks((DOCS / "architecture.md").read_text(encoding="utf-8")) if each.text]
    source = inspect.getsource(Lane)
    assert all(line in source for line in loop.text.splitlines())


def test_the_figure_is_well_formed_and_names_the_arrows() -> None:
    text = "".join(ElementTree.parse(DOCS / "architecture.svg").getroot().itertext())
    for arrow in ("Sequence", "StepPlan", "ForwardBatch", "StepResult", "SequenceUpdate", "RequestOutput"):
        assert arrow in text
    for ring in ("api", "nn", "engine", "serve", "plugins"):
        assert ring in text
