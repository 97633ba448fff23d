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
FORMS = tuple(f"structured.{name}" for name in ("process", "child", "follower", "llguidance"))
TORCH_FREE = [f"bestiary.engine.{name}" for name in ("sequence", "state_rows", "kv_cache", "scheduler", "plan", *FORMS)]


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


def test_who_serves_a_model_leaves_torch_to_the_engine_process() -> None:
    read = "from bestiary.serve.text.loading import read_tokenizer; read_tokenizer(EngineArgs(model='smollm2'))"
    loaded = loaded_by(f"import bestiary.serve.async_llm; from bestiary.engine.arguments import EngineArgs; {read}")
    assert "tokenizers" in loaded
    assert sorted(loaded & {"torch", "transformers", "rich"}) == []


def test_the_measurement_sees_a_heavy_import() -> None:
    assert "numpy" in loaded_by("import numpy")


def test_loading_a_model_does_not_bring_in_torch_s_symbolic_shapes(tmp_path: Path) -> None:
    """sympy and its kin take over a second, and one operator on a meta tensor is enough to import them."""
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "intermediate_size": 32,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 64,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = loaded_by(
        "from bestiary import LLM, SamplingParams\n"
        f"llm = LLM({str(tmp_path)!r}, load_format='dummy', skip_tokenizer_init=True, progress=False)\n"
        "llm.generate([5, 6], SamplingParams(max_tokens=2), use_tqdm=False)"
    )
    assert "torch" in loaded
    assert sorted(loaded & {"sympy", "rich", "accelerate"}) == []
