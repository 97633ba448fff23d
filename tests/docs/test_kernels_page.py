"""docs/kernels.md: the package that it writes offers a version of an op, and that computes what the reference does."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import torch

from bestiary.api.importing import load_object
from bestiary.nn.ops.norm import rms_norm
from bestiary.nn.ops.registry import Target, choose_ops

PAGE = Path(__file__).resolve().parents[2] / "docs" / "kernels.md"


def test_the_package_of_the_page_works(tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n# (my_kernels/\w+\.py)[^\n]*\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert [name for name, _ in blocks] == ["my_kernels/hooks.py", "my_kernels/norm.py"]
    for name, text in blocks:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    offers = importlib.import_module("my_kernels.hooks").op_implementations()
    offered = {name: load_object(value, "the page") for name, value in offers.items()}
    chosen = choose_ops(Target("cpu", torch.float32), {}, offered)
    assert chosen.names["rms_norm"] == "mine"
    x, weight = torch.randn(3, 8), torch.rand(8)
    with chosen.active():
        got = rms_norm(x, weight, 1e-5)
    torch.testing.assert_close(got, rms_norm.reference(x, weight, 1e-5))
    assert choose_ops(Target("cuda", torch.float16), {}, offered).names["rms_norm"] == "reference"
