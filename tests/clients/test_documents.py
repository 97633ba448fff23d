"""The blocks of docs/clients.md, run as they stand but for the server's address and key."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import pytest

from .processes import KEY, PATIENCE, ROOT

PAGE = (ROOT / "docs" / "clients.md").read_text("utf-8")
BLOCKS = re.findall(r"^## (.+?)$.*?^```(python|javascript)$\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_every_client_has_a_block():
    assert len(BLOCKS) == 5


@pytest.mark.parametrize(("language", "text"), [pytest.param(*each, id=title) for title, *each in BLOCKS])
def test_a_block_runs(smollm2, language, text):
    text = text.replace("http://localhost:8000", smollm2.url).replace('"none"', f'"{KEY}"')
    program = [sys.executable, "-c", text]
    if language == "javascript":
        node = shutil.which("node")
        if node is None:
            pytest.skip("NO NODE HERE: clients for Node were not tried")
        program = [node, "--input-type=module", "-e", text]
    done = subprocess.run(
        program, cwd=ROOT / "tests" / "clients" / "node", capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()  # it is drawn, so nobody knows what it says
