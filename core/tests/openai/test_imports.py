"""The process that speaks HTTP loads neither torch nor transformers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

HEAVY = {"torch", "transformers", "rich", "huggingface_hub"}
MODULES = "app, running, routes, parsing, structured, listening, protocol"


def test_nothing_heavy_is_loaded() -> None:
    code = f"""
import sys, json
from bestiary.serve.openai import {MODULES}
from bestiary.serve.openai.options import ServeOptions
from openai.fake import FakeLLM
app.make_app(FakeLLM(), ServeOptions())
print(json.dumps(sorted({{name.partition(".")[0] for name in sys.modules}})))
"""

    tests = str(Path(__file__).resolve().parents[1])
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {tests!r})\n{code}"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert sorted(HEAVY & set(json.loads(run.stdout))) == []
