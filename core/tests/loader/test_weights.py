"""`open_weights`: formats, NaN and Inf (row M07), dummy weights, progress."""

from __future__ import annotations

import io
import os
import select
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from bestiary.api.errors import LoadError, PickleRefused, UsageError, WeightsMismatch
from bestiary.engine.loader import progress as progress_module
from bestiary.engine.loader.dummy import dummy_value
from bestiary.engine.loader.nonfinite import count_nonfinite
from bestiary.engine.loader.progress import load_progress
from bestiary.engine.loader.safetensors_reader import TensorInfo
from bestiary.engine.loader.source import ModelSource, resolve_source
from bestiary.engine.loader.weights import WeightStream, open_weights

WEIGHTS = {"b": torch.ones(4, 4), "a": torch.zeros(3, dtype=torch.bfloat16), "n": torch.arange(5)}


@pytest.fixture
def source(tmp_path: Path) -> ModelSource:
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    return resolve_source(str(tmp_path))


def test_a_stream_is_described_before_it_is_read_and_read_twice(source: ModelSource) -> None:
    stream = open_weights(source)
    assert stream.format == "safetensors"
    assert stream.tensors["a"].shape == (3,)
    assert stream.total_bytes == 4 * 4 * 4 + 3 * 2 + 5 * 8
    for _ in range(2):
        read = dict(stream)
        assert read.keys() == WEIGHTS.keys()
        assert all(torch.equal(read[name], WEIGHTS[name]) for name in WEIGHTS)


def test_progress_counts_every_byte(source: ModelSource) -> None:
    calls: list[tuple[int, int]] = []
    stream = open_weights(source, progress=lambda done, total: calls.append((done, total)))
    assert calls == []
    for _ in stream:
        pass
    assert [total for _, total in calls] == [stream.total_bytes] * 5
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert (calls[0][0], calls[-1][0]) == (0, stream.total_bytes)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_m07_nonfinite_weights(tmp_path: Path, bad: float, dtype: torch.dtype) -> None:
    tensors = {"good": torch.randn(100), "bad": torch.randn(1000).to(dtype), "worse": torch.randn(1000).to(dtype)}
    tensors["bad"][777] = bad
    tensors["worse"][:10] = bad
    save_file(tensors, tmp_path / "model.safetensors")
    source = resolve_source(str(tmp_path))
    with pytest.raises(WeightsMismatch) as caught:
        list(open_weights(source))
    assert caught.value.error_code == "NONFINITE_WEIGHTS"
    assert set(caught.value.details) == {"bad: 1 NaN or Inf", "worse: 10 NaN or Inf"}
    assert caught.value.field in tensors
    assert "--allow-nonfinite" in str(caught.value)
    told: list[str] = []
    assert len(list(open_weights(source, allow_nonfinite=True, notify=told.append))) == 3
    assert len(told) == 1
    assert "11 NaN or Inf" in told[0]


FLOATS = st.lists(st.floats(width=16) | st.sampled_from([float("nan"), float("inf"), float("-inf")]), max_size=40)
EIGHT_BIT = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu)


@settings(max_examples=80, deadline=None)
@given(
    FLOATS, st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64, *EIGHT_BIT, torch.complex64])
)
def test_count_is_the_number_of_elements_that_are_not_finite(values: list[float], dtype: torch.dtype) -> None:
    tensor = torch.tensor(values).to(dtype)
    wide = tensor.to(torch.complex128) if dtype.is_complex else tensor.float()
    expected = torch.view_as_real(wide) if dtype.is_complex else wide
    assert count_nonfinite(tensor) == int((~torch.isfinite(expected)).sum())


def test_integers_and_strides() -> None:
    assert count_nonfinite(torch.arange(10)) == count_nonfinite(torch.tensor([True])) == 0
    tensor = torch.zeros(8, 8)
    tensor[0, 3] = float("nan")
    assert count_nonfinite(tensor.t()) == 1
    assert count_nonfinite(tensor[:, ::2]) == 0


def test_unknown_format_lists_the_known(source: ModelSource) -> None:
    with pytest.raises(UsageError, match="auto, dummy, gguf, mine, safetensors") as caught:
        open_weights(source, load_format="bin", formats={"mine": lambda source, _: open_weights(source)})
    assert caught.value.field == "load_format"


def test_formats_that_hooks_add(source: ModelSource) -> None:
    tensor = torch.full((2,), float("nan"))
    stream = WeightStream(format="mine", tensors={"x": TensorInfo((2,), "F32", 8)}, read=lambda: iter([("x", tensor)]))
    with pytest.raises(WeightsMismatch, match="x: 2 NaN"):
        list(open_weights(source, load_format="mine", formats={"mine": lambda source, _: stream}))


def test_m01_only_pickles(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"")
    source = resolve_source(str(tmp_path))
    for load_format in ("auto", "safetensors"):
        with pytest.raises(PickleRefused) as caught:
            open_weights(source, load_format=load_format)
        assert caught.value.details == ("model.pt",)
    assert open_weights(source, load_format="dummy").total_bytes == 0


def test_gguf_through_our_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The seam alone: which functions are asked for, and how their answers become a stream."""
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF")
    stored = SimpleNamespace(shape=(2, 32), type=SimpleNamespace(name="Q4_0"), nbytes=36)
    file = SimpleNamespace(tensors={"blk.0.x": stored, "ignored": stored})
    package = "bestiary.engine.loader"
    fakes: dict[str, dict[str, Any]] = {
        "gguf_reader": {"GgufFile": SimpleNamespace(open=lambda opened: file if opened == path else None)},
        "gguf_names": {"checkpoint_names": lambda opened, declaration: {"blk.0.x": "layers.0.x"}},
        "gguf_weights": {"gguf_tensors": lambda opened, declaration: iter([("layers.0.x", torch.ones(2, 32))])},
    }
    for name, members in fakes.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, f"{package}.{name}", module)
    calls: list[int] = []
    source = resolve_source(str(path))
    stream = open_weights(source, gguf_declaration="declared", progress=lambda done, total: calls.append(done))
    assert stream.tensors == {"layers.0.x": TensorInfo((2, 32), "Q4_0", 36, path)}
    assert [name for name, _ in stream] == ["layers.0.x"]
    assert calls == [0, 36, 36]
    with pytest.raises(LoadError, match="bestiary_gguf") as caught:
        open_weights(source)
    assert caught.value.field == "gguf_declaration"


def test_gguf_is_asked_of_a_directory_of_safetensors(source: ModelSource) -> None:
    with pytest.raises(LoadError) as caught:
        open_weights(source, load_format="gguf")
    assert caught.value.field == "load_format"


def test_dummy_weights_depend_on_the_name_alone(source: ModelSource) -> None:
    parameters = {
        "layers.0.w": ((8, 8), torch.float32),
        "norm.weight": ((8,), torch.bfloat16),
        "ids": ((2,), torch.int32),
    }
    stream = open_weights(source, load_format="dummy", parameters=parameters)
    assert stream.total_bytes == 8 * 8 * 4 + 8 * 2 + 2 * 4
    read = dict(stream)
    assert {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in read.items()} == parameters
    assert torch.equal(read["layers.0.w"], dummy_value("layers.0.w", (8, 8), torch.float32))
    assert not torch.equal(read["layers.0.w"], dummy_value("layers.1.w", (8, 8), torch.float32))
    assert torch.equal(read["norm.weight"], torch.ones(8, dtype=torch.bfloat16))
    state = torch.random.get_rng_state()
    dummy_value("x", (4,), torch.float32)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_dummy_values_are_normal_and_the_same_in_every_dtype() -> None:
    wide = dummy_value("w", (1100, 1000), torch.float32)
    assert abs(float(wide.mean())) < 1e-3
    assert float(wide.std()) == pytest.approx(0.02, rel=0.01)
    assert torch.equal(dummy_value("w", (1100, 1000), torch.bfloat16), wide.bfloat16())
    assert torch.unique(wide, dim=0).shape[0] == 1100


def test_progress_lines_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: clock.now)
    out = io.StringIO()
    with load_progress("Loading weights", stream=out) as callback:
        assert callback is not None
        for second in range(12):
            clock.now = float(second)
            callback(second * 10**6, 11 * 10**6)
        callback(11 * 10**6, 11 * 10**6)
    lines = out.getvalue().splitlines()
    assert lines == [
        "Loading weights: 5 of 11 MB, 5.0 s, 1 MB/s",
        "Loading weights: 10 of 11 MB, 10.0 s, 1 MB/s",
        "Loading weights: 11 of 11 MB, 11.0 s, 1 MB/s",
    ]


def test_progress_disabled() -> None:
    out = io.StringIO()
    with load_progress("Loading weights", enabled=False, stream=out) as callback:
        assert callback is None
    assert out.getvalue() == ""


def _all_that_waits(descriptor: int) -> bytes:
    """A terminal hands its output over in pieces: one read need not bring all of it."""
    found = b""
    while select.select([descriptor], [], [], 0.2)[0]:
        found += os.read(descriptor, 10_000)
    return found


def test_progress_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    leader, follower = os.openpty()
    with os.fdopen(follower, "w") as terminal:
        with load_progress("Loading weights", stream=terminal) as callback:
            assert callback is not None
            callback(0, 4_000_000)
            callback(4_000_000, 4_000_000)
        terminal.flush()
        shown = _all_that_waits(leader).decode()
    os.close(leader)
    assert "Loading weights" in shown
    assert "4.0/4.0 MB" in shown
