"""The port that docs/write-a-plugin.md shows in full: certified as an author would, and installed nowhere here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from workshop import ROOT, certify, require_passed

PROJECT = ROOT / "tests/worked_example/gpt_neox"


def test_it_is_certified(tmp_path: Path) -> None:
    code, found = certify(PROJECT, tmp_path)
    require_passed(code, found, "certified")
    assert found["readme"]["state"] == "current", f"bestiary certify {PROJECT.relative_to(ROOT)} --write-readme"
    (row,) = found["architectures"]
    assert (row["architecture"], row["claims"]) == ("GPTNeoXForCausalLM", ["text_generation", "lora", "pp"])
    assert len((PROJECT / "src/gpt_neox/model.py").read_text("utf-8").splitlines()) <= 200


def test_what_its_own_tests_say_beside_the_contract(tmp_path: Path) -> None:
    places = [str(PROJECT / "src"), *(path for path in sys.path if path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(places), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", "not TestGPTNeoX", str(PROJECT)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout + done.stderr
