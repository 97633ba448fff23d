"""What must start fast loads nothing heavy: proved in fresh interpreters, so that lazy imports of others count too."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLUGINS = {path.name for path in ROOT.glob("plugins/*/src/*/")}
HEAVY = PLUGINS | {"torch", "transformers", "numpy", "tokenizers", "safetensors", "huggingface_hub", "rich", "gguf"}
TORCH_FREE = [f"bestiary.engine.{name}" for name in ("sequence", "kv_cache", "scheduler", "plan")]


def loaded_by(code: str) -> set[str]:
    """Top-level names of the modules that a fresh interpreter has loaded after running `code`."""
    report = "\nimport json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    run = subprocess.run([sys.executable, "-c", code + report], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    return set(json.loads(run.stdout))


@pytest.mark.parametrize("module", ["bestiary", "bestiary.api"])
def test_the_outermost_names_load_nothing_heavy(module: str) -> None:
    loaded = loaded_by(f"import {module}")
    assert "bestiary" in loaded
    assert sorted(loaded & HEAVY) == []


@pytest.mark.parametrize("module", TORCH_FREE)
def test_bookkeeping_of_the_engine_works_without_torch(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.fail(f"{module} is gone: name its successor here and in test_rings.py")
    assert sorted(loaded_by(f"import {module}") & {"torch", "transformers", "numpy"}) == []


def test_the_measurement_sees_a_heavy_import() -> None:
    assert "numpy" in loaded_by("import numpy")
