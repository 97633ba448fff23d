"""What a GPU's memory is spared for, and what is said of it when steps were captured."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bestiary.engine import capture
from bestiary.engine.capture import capture_steps
from bestiary.engine.memory import CUDA_MARGIN_BYTES, num_kv_blocks
from bestiary.nn.attention.backend import KVCacheSpec

GIB = 1024**3
SPEC = KVCacheSpec(num_kv_heads=8, head_size=64, dtype=torch.float16)  # 2 KiB a token, 32 KiB a block


def config(device: str, **cache: Any) -> Any:
    return SimpleNamespace(
        cache_config=SimpleNamespace(**{"block_size": 16, "num_blocks": None, "memory_bytes": None, **cache}),
        model_config=SimpleNamespace(max_model_len=1 << 12), scheduler_config=SimpleNamespace(max_num_seqs=1 << 16),
        device_config=SimpleNamespace(device=device),
    )  # fmt: skip


@pytest.mark.parametrize(("free", "taken"), [(80 * GIB, 40 * GIB), (3 * GIB // 2, GIB // 2), (2 * GIB, GIB)])
def test_a_gpus_cache_leaves_half_and_at_least_the_margin(free: int, taken: int) -> None:
    blocks = num_kv_blocks([SPEC], config("cuda"), free=free)
    assert blocks * 32 * 1024 == taken
    assert free - taken >= CUDA_MARGIN_BYTES


def test_what_the_user_says_is_taken() -> None:
    assert num_kv_blocks([SPEC], config("cuda", memory_bytes=GIB), free=GIB) == 32 * 1024


class Runner:
    """Takes so much memory for steps of so many sizes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, free: int, steps: int, taken: int, device: str) -> None:
        self.device, self.steps, self.taken, self.free = torch.device(device), steps, taken, free
        monkeypatch.setattr(capture, "free_memory", lambda device: self.free)

    def record_steps(self, progress: Any) -> int:
        self.free -= self.taken
        return self.steps


def said(runner: Any, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> tuple[str, list[str]]:
    capture_steps(runner, progress=True)
    return capsys.readouterr().err, [record.message for record in caplog.records]


def test_what_steps_took_is_said(monkeypatch: Any, capsys: Any, caplog: Any) -> None:
    shown, warned = said(Runner(monkeypatch, 3 * GIB, 11, GIB // 2, "cuda"), capsys, caplog)
    assert shown.startswith("captured decode steps of 11 sizes in ") and shown.count("\n") == 1
    assert shown.endswith("they took 0.50 GiB of the GPU's memory, 2.50 GiB are free\n") and not warned


def test_little_memory_is_named(monkeypatch: Any, capsys: Any, caplog: Any) -> None:
    _, warned = said(Runner(monkeypatch, GIB // 2, 3, GIB // 4, "cuda"), capsys, caplog)
    assert len(warned) == 1 and warned[0].startswith("0.25 GiB of the GPU's memory are free")


def test_nothing_is_said_of_nothing(monkeypatch: Any, capsys: Any, caplog: Any) -> None:
    assert said(Runner(monkeypatch, GIB // 4, 0, 0, "cuda"), capsys, caplog) == ("", [])
    shown, warned = said(Runner(monkeypatch, GIB // 4, 2, 0, "cpu"), capsys, caplog)
    assert "memory" not in shown and not warned
