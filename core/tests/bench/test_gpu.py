"""`bench gpu` on a CPU with tiny shapes: every row gives its figure, and limits are reckoned as they should be."""

from __future__ import annotations

import json
import math

import pytest
import torch
from click.testing import CliRunner

from bestiary.api.errors import UsageError
from bestiary.bench.cli import bench
from bestiary.bench.gpu import rows
from bestiary.bench.gpu.run import gpu_table, run_gpu
from bestiary.bench.gpu.shapes import SHAPES, tiny
from bestiary.bench.hardware import Hardware

MACHINE = rows.Machine("cpu", Hardware("cpu", "a processor", 1, 1e9, 1e12, "bfloat16", "said so"), small=True)


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bestiary.bench.gpu.run.measure_hardware", lambda device, dtype: MACHINE.hardware)


@pytest.mark.parametrize("name", [name for name in rows.ROWS if name not in ("G8", "T2")])
def test_a_row(name: str) -> None:
    for figure in rows.ROWS[name](MACHINE):
        assert figure.name == name
        assert math.isfinite(figure.value)
        assert name == "G9" or figure.value > 0
        if figure.limit is not None and figure.fraction is not None:
            faster = figure.unit in ("ms/token", "ms")
            reached = figure.limit / figure.value if faster else figure.value / figure.limit
            assert figure.fraction == pytest.approx(reached)


@pytest.mark.gpu
@pytest.mark.parametrize("name", [name for name in rows.ROWS if name not in ("G8", "T3")])
def test_a_row_on_a_gpu(name: str) -> None:
    """With tiny shapes; T3 takes matrices that no cache has, also of tiny ones."""
    machine = rows.Machine("cuda", MACHINE.hardware, small=True)
    assert all(math.isfinite(figure.value) for figure in rows.ROWS[name](machine))


def test_limits_are_those_of_the_shape() -> None:
    """A step of one row reads every weight once, in two bytes each: the published size of the 8B model."""
    shape = SHAPES["llama-3-8b"]
    hidden, width, vocabulary = shape["hidden_size"], shape["intermediate_size"], shape["vocab_size"]
    layer = 2 * hidden * hidden + 2 * hidden * 1024 + 3 * hidden * width + 2 * hidden
    assert 32 * layer + 2 * vocabulary * hidden + hidden == 8_030_261_248
    assert tiny(shape)["architectures"] == shape["architectures"]
    assert {"num_experts", "num_experts_per_tok"} <= tiny(SHAPES["qwen3-30b-a3b"]).keys()


def test_a_row_that_fails_is_told_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(machine: rows.Machine) -> object:
        raise ValueError("no luck")

    def fine(machine: rows.Machine) -> list[rows.Figure]:
        return [rows.Figure(name="G2", what="half of it", value=5.0, unit="tok/s", limit=10.0, fraction=0.5)]

    monkeypatch.setattr(rows, "ROWS", {"G1": broken, "G2": fine})
    monkeypatch.setattr("bestiary.bench.gpu.run.ROWS", {"G1": broken, "G2": fine})
    said: list[str] = []
    record = run_gpu("cpu", (), 60, True, said.append)
    assert record["failed"] == {"G1": "ValueError: no luck"}
    assert [each["value"] for each in record["figures"]] == [5.0]
    shown = gpu_table(record)
    assert "50%" in shown
    assert "G1 has no figure: ValueError: no luck" in shown
    assert run_gpu("cpu", (), 0, True, said.append)["failed"].keys() == {"G1", "G2"}


def test_what_cannot_be_measured_is_said() -> None:
    with pytest.raises(UsageError, match="no such row") as caught:
        run_gpu("cpu", ("G77",), 60, True, print)
    assert "G1" in str(caught.value.limit)
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="no CUDA device"):
            run_gpu("cuda", (), 60, False, print)


def test_the_command_prints_its_record() -> None:
    done = CliRunner().invoke(bench, ["gpu", "--device", "cpu", "--tiny", "--only", "G5", "--json", "-q"])
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    assert record["kind"] == "gpu"
    assert [each["name"] for each in record["figures"]] == ["G5", "G5"]
