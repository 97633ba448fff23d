"""L rows: adapters that lie elsewhere, and adapters that are none."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from .row import Row, encoded

LOAD = "/v1/load_lora_adapter"
MODULE = "base_model.model.model.layers.0.self_attn.q_proj"
GOOD: Mapping[str, Any] = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "rank-0": {"r": 0}, "rank-million": {"r": 10**6}, "rank-text": {"r": "2"}, "rank-true": {"r": True},
    "alpha-text": {"lora_alpha": "4"}, "alpha-huge": {"lora_alpha": 1e300}, "dora": {"use_dora": True},
    "bias": {"bias": "all"}, "other-kind": {"peft_type": "IA3"}, "no-kind": {"peft_type": None},
    "targets-number": {"target_modules": 7}, "pattern-bomb": {"rank_pattern": {"(a+)+$": 2, "(" * 5000: 3}},
    "saved": {"modules_to_save": ["lm_head"]}, "init": {"init_lora_weights": "pissa"},
    "large-rank": {"r": 512}, "other-rank": {"r": 3},
}  # fmt: skip
OUTSIDE = ("..", "../..", "../secret", "/", "/etc", "/etc/passwd", ".", "", "good/..", "good/../../secret", "link",
"loop",
           "missing", "a\u0000b", "x" * 4096, "x" * 4097, "http://evil.example/a", "file:///etc", "~", "~root", "$HOME",
           "good\n", "\\..\\..", "%2e%2e", "file", "x/" * 1500)  # fmt: skip


def lay(folder: Path) -> Path:
    """Write adapters, good and bad; returns the directory below which they may be named."""
    root = folder / "adapters"
    for name, changes in {"good": {}, **CONFIGS}.items():
        _adapter(root / name, GOOD | changes)
    for name, (config, tensors) in _FILES.items():
        _adapter(root / name, GOOD)
        if config is not None:
            (root / name / "adapter_config.json").write_bytes(config)
        tensors(root / name / "adapter_model.safetensors")
    _adapter(folder / "secret", GOOD)
    (root / "link").symlink_to(folder / "secret")
    (root / "loop").symlink_to(root / "loop")
    (root / "file").write_text("x")
    return root


def rows() -> Iterator[Row]:
    for number, path in enumerate(OUTSIDE):
        outcomes = ((400, "BAD_REQUEST"),) if not 1 <= len(path) <= 4096 else ((403, "LORA_PATH"),)
        yield _row("L01", {"lora_name": f"outside-{number}", "lora_path": path}, *outcomes)
    for name in ("", "x" * 2**20, None, 7):
        yield _row("L01", {"lora_name": name, "lora_path": "good"}, (400, "BAD_REQUEST"))
    for wrong in ({}, {"lora_name": "a"}, {"lora_path": "good"}, {"lora_name": "a", "lora_path": 7}):
        yield _row("L01", wrong, (400, "BAD_REQUEST"))
    for number, name in enumerate([*CONFIGS, *_FILES]):
        yield _row("L02", {"lora_name": f"bad-{number}", "lora_path": name}, (400, "BAD_ADAPTER"))
    unknown = {"lora_name": "nothing"}
    yield Row(id="L02", path="/v1/unload_lora_adapter", body=encoded(unknown), outcomes=((404, "UNKNOWN_ADAPTER"),))


def _row(id_: str, body: dict[str, Any], *outcomes: tuple[int, str | None]) -> Row:
    return Row(id=id_, path=LOAD, body=encoded(body), outcomes=outcomes)


def _adapter(folder: Path, config: Mapping[str, Any], changes: Mapping[str, torch.Tensor] | None = None) -> None:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    _write(**(changes or {}))(folder / "adapter_model.safetensors")


def _write(**changes: torch.Tensor) -> Callable[[Path], None]:
    """A writer of a good adapter's tensors, some of them changed; A and B are those of the first query projection."""
    pair = {"A": torch.full((2, 64), 0.01), "B": torch.full((64, 2), 0.01)}
    tensors = {f"{MODULE}.lora_{name}.weight": value for name, value in pair.items()}
    named = {f"{MODULE}.lora_{name}.weight" if name in pair else name: value for name, value in changes.items()}
    return lambda path: save_file({**tensors, **named}, str(path))


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("evil-was-here"),)


def _pickled(path: Path) -> None:
    path.unlink()
    path.with_name("adapter_model.bin").write_bytes(pickle.dumps(_Evil()))


def _renamed(path: Path) -> None:
    path.write_bytes(pickle.dumps(_Evil()))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


_FILES: Mapping[str, tuple[bytes | None, Callable[[Path], None]]] = {
    "no-json": (b"{", _write()), "no-object": (b"[]", _write()), "alpha-nan": (b'{"lora_alpha": NaN}', _write()),
    "deep": (b'{"a":' * 10**5, _write()), "twice": (b'{"r": 1, "r": 2}', _write()), "bytes": (b"\xff", _write()),
    "nan": (None, _write(A=torch.full((2, 64), float("nan")))), "inf": (None, _write(B=torch.full((64, 2),
    float("inf")))),
    "wrong-base": (None, _write(A=torch.zeros(2, 65))), "wrong-output": (None, _write(B=torch.zeros(65, 2))),
    "integers": (None, _write(A=torch.zeros(2, 64, dtype=torch.int64))), "vector": (None, _write(A=torch.zeros(2))),
    "alone": (None, _write(**{f"{MODULE.replace('q_', 'k_')}.lora_A.weight": torch.zeros(2, 64)})),
    "unknown-module": (None, _write(**{"base_model.model.nothing.lora_A.weight": torch.zeros(2, 64)})),
    "foreign-name": (None, _write(**{"x" * 3000: torch.zeros(2)})), "pickle": (None, _pickled),
    "renamed-pickle": (None, _renamed), "cut": (None, _cut), "empty": (None, lambda path: path.write_bytes(b"")),
    "header": (None, lambda path: path.write_bytes(struct.pack("<Q", 2**63) + b"{}")),
    "none": (None, lambda path: path.unlink()),
}  # fmt: skip
