"""What needs a GPU, on one that is pretended; and what that notices."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
import torch

HERE = Path(__file__).parent
ON_ONE = "tests/triton/test_on_a_gpu.py"
ENGINES = [
    "bench/test_gpu",
    "engine/test_ahead_model",
    "engine/test_device_edits",
    "engine/test_graphs_of_ranks",
    "engine/test_sampler",
    "structured/test_ahead",
]
MODELS = ["core/tests/nn/test_weights.py", "core/tests/quant/test_models.py", "plugins/vllm_compat/tests"]


def _program(name: str, folder: Path = HERE) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    if spec is None or spec.loader is None:
        raise ImportError(name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _why_not() -> str | None:
    if torch.version.cuda is not None:
        return "this torch is built for GPUs: one is had, not pretended"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    return None if _program("emulated", HERE.parent / "triton").why_not() is None else "NO C++ COMPILER HERE"


pytestmark = pytest.mark.skipif(_why_not() is not None, reason=str(_why_not()))


def require(*arguments: str, gpus: int = 1) -> None:
    run, environment = _program("run").command("-p", "no:cacheprovider", *arguments, gpus=gpus)
    environment = {name: value for name, value in environment.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        run, env=environment, cwd=HERE.parent.parent, capture_output=True, text=True, timeout=3000, check=False
    )
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-6000:] + done.stderr[-2000:]
    assert " skipped" not in done.stdout


def test_what_it_notices() -> None:
    require(str(HERE / "noticed.py"))


@pytest.mark.parametrize("which", ["tokens_are_the_cpus and not bloom", "wait_for_nothing or int4"])
def test_whole_models(which: str) -> None:
    require("-m", "gpu", ON_ONE, "-k", which)


def test_two_gpus_and_benchmarks() -> None:
    require("-m", "gpu", *(f"core/tests/{name}.py" for name in ENGINES), gpus=2)


def test_checkpoints_and_files_for_vllm() -> None:
    require("-m", "gpu and not full", *MODELS)


@pytest.mark.full
def test_latent_attention_bit_by_bit() -> None:
    require("-m", "gpu and full", MODELS[-1])


@pytest.mark.full
@pytest.mark.parametrize(
    "which", ["captured_at", "graphs", "experts", "same_bits", "adapters", "tokens_are_the_cpus and bloom"]
)
def test_more_of_whole_models(which: str) -> None:
    require("-m", "gpu", ON_ONE, "-k", which)
