"""`bench ops`: what is counted, beside which limit; that measuring leaves the engine as it was."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from bestiary import LLM
from bestiary.api.errors import UsageError
from bestiary.bench import run
from bestiary.bench.cli import bench
from bestiary.bench.hardware import Hardware
from bestiary.bench.op_cost import attention_cost, op_cost
from bestiary.bench.op_timer import OpTimer
from bestiary.bench.ops import Breakdown, OpsBench, OpsWork
from bestiary.bench.subject import runner_of
from bestiary.bench.workload import Workload
from bestiary.nn.attention.backend import AttentionSpec
from bestiary.nn.attention.metadata import AttentionMetadata
from bestiary.nn.graphs import KernelTime
from bestiary.nn.ops.activation import silu_and_mul
from bestiary.nn.ops.moe import fused_experts, grouped_experts
from bestiary.nn.ops.norm import rms_norm
from bestiary.nn.ops.packed import PackedWeight
from bestiary.nn.ops.product import Product
from bestiary.nn.ops.quant import linear_int4
from bestiary.nn.quant.grouped import int4_groups

MACHINE = Hardware("cpu", "a processor", 1, 1e9, 1e10, "float32", "told")
OPTIONS = ["--dtype", "float32", "--device", "cpu", "--quiet", "--repeats", "1", "--skip-tokenizer-init",
           "--batch", "1", "--batch", "3", "--prefill-len", "12", "--input-len", "4", "--output-len", "6"]  # fmt: skip


@pytest.fixture(autouse=True)
def known_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "measure_hardware", lambda device, dtype: MACHINE)


def rows_of(part: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {f"{row['name']} {row['shape']}": row for row in part["ops"]}


def test_each_op_has_its_own_limit(tiny: str, tmp_path: Path) -> None:
    output = tmp_path / "record.json"
    given = [*OPTIONS, "--json", "--output", str(output)]
    done = CliRunner().invoke(bench, ["ops", tiny, *given], catch_exceptions=False)
    record = json.loads(done.stdout)
    assert record == json.loads(output.read_text()) and record["kind"] == "ops"
    assert list(record["results"]) == ["decode 1", "decode 3", "prefill 12"]
    decode = record["results"]["decode 3"]
    assert (decode["how"], decode["rows"], decode["context"], decode["program_seconds"]) == ("op by op", 3, 9, None)
    rows = rows_of(decode)
    qkv = rows["linear 3×32→64 float32"]  # in both layers
    assert (qkv["calls"], qkv["bytes"], qkv["operations"]) == (2, 2 * 4 * 32 * 64, 2 * 2 * 3 * 32 * 64)
    assert qkv["limit_seconds"] == pytest.approx(max(qkv["bytes"] / 1e9, qkv["operations"] / 1e10), rel=1e-4)
    assert qkv["of_limit"] == pytest.approx(qkv["limit_seconds"] / qkv["seconds"], rel=1e-4)
    attention = rows["attention 4/2 heads of 8"]
    assert attention["bytes"] == 2 * 3 * 9 * 2 * 2 * 8 * 4
    assert attention["operations"] == 2 * 3 * 9 * 4 * 4 * 8
    shares = (
        sum(row["share"] for row in decode["ops"])
        + (decode["runner_seconds"] + decode["engine_seconds"]) / decode["step_seconds"]
    )
    assert shares == pytest.approx(1, rel=1e-4)
    prefill = rows_of(record["results"]["prefill 12"])
    assert prefill["attention 4/2 heads of 8"]["operations"] == 2 * (12 * 13 // 2) * 4 * 4 * 8
    assert prefill["linear_onednn 1×32→97 float32"]["calls"] == 1  # logits of the last token alone


def test_a_table_for_people(tiny: str) -> None:
    done = CliRunner().invoke(bench, ["ops", tiny, *OPTIONS], catch_exceptions=False)
    assert "decode 3: " in done.stdout and "prefill 12: " in done.stdout
    assert "the engine: scheduler, text" in done.stdout and "of the limit" in done.stdout


class Graphs:
    """Whose every step is recorded, and can be taken apart."""

    def take(self, *of: Any) -> None:
        return None

    def took(self, batch: Any) -> bool:
        return False

    def recorded(self, rows: int) -> Again:
        return Again()


class Again:
    def __call__(self) -> Any:
        return ()

    def profile(self, seconds: float) -> list[KernelTime]:
        return [KernelTime("everything", "once", 1, 1e-3, 5e5, 0)]


def test_a_recorded_step_is_taken_apart_by_its_recorder(tiny: str) -> None:
    with LLM(tiny, dtype="float32", device="cpu", skip_tokenizer_init=True, progress=False) as llm:
        runner_of(llm).graphs = Graphs()  # type: ignore[assignment]
        work = OpsWork(input_len=4, output_len=6, repeats=1, seconds=0, text=False)
        found = OpsBench(llm, Workload(97), work).decode(2)
    assert found.how == "recorded" and found.program is not None
    part = found.as_dict(MACHINE)
    (row,) = part["ops"]
    assert (row["name"], row["limit_seconds"], row["of_limit"]) == ("everything", 5e-4, 0.5)
    assert part["between_seconds"] == pytest.approx(found.program - 1e-3)
    assert part["runner_seconds"] == pytest.approx(found.executed - found.program)
    assert part["engine_seconds"] == pytest.approx(found.step - found.executed)


def test_prompts_too_long_for_a_full_step_are_a_usage_error(tiny: str) -> None:
    """Nine tokens a step: the first answer ends before the second prompt is through."""
    options: Any = {"dtype": "float32", "device": "cpu", "skip_tokenizer_init": True, "progress": False}
    with LLM(tiny, max_num_batched_tokens=9, enable_prefix_caching=False, **options) as llm:
        bench_ = OpsBench(llm, Workload(97), OpsWork(input_len=40, output_len=3, repeats=1, text=False))
        with pytest.raises(UsageError, match="answers of 3 tokens end before 2 requests decode together"):
            bench_.decode(2)


def test_watching_leaves_the_engine_as_it_was(tiny: str) -> None:
    timer = OpTimer("cpu")
    with LLM(tiny, dtype="float32", device="cpu", skip_tokenizer_init=True, progress=False) as llm:
        runner = runner_of(llm)
        layers = [module for module in runner.model.modules() if hasattr(module, "backend")]
        head = runner.model.lm_head
        before = runner.stage.ops, runner.graphs, [layer.backend for layer in layers], head.quant_method
        with suppress(ZeroDivisionError), timer.watching(runner):
            assert runner.stage.ops is not before[0] and layers[0].backend is not before[2][0]
            assert layers[0].backend.name == before[2][0].name
            assert head.quant_method is not before[3]
            raise ZeroDivisionError
        after = runner.stage.ops, runner.graphs, [layer.backend for layer in layers], head.quant_method
        assert after == before


def test_of_ops_within_ops_the_outermost_counts() -> None:
    timer = OpTimer("cpu")
    x = torch.ones(2, 8)
    inner = timer._timed("inner", lambda x: rms_norm(x, None, 1e-6))
    outer = timer._timed("outer", lambda x: inner(x) + inner(x))
    outer(x)
    outer(x)
    inner(x)
    assert [(row.name, row.shape, row.calls, row.bytes) for row in timer.take()] == [
        ("outer", "2×8", 2, 2 * 2 * x.nbytes), ("inner", "2×8", 1, 2 * x.nbytes),
    ]  # fmt: skip
    assert timer.take() == []


def test_experts_that_nobody_chose_are_not_read() -> None:
    w13, w2 = torch.ones(5, 12, 8), torch.ones(5, 8, 6)
    slots, weights = torch.tensor([[0, 3], [3, 0], [3, 4]]), torch.full((3, 2), 0.5)
    args = torch.ones(3, 8), w13, w2, weights, slots, "silu"
    cost = op_cost("fused_experts", args, fused_experts.reference(*args))
    assert cost == ("6 pairs, 5 experts float32", 3 * 4 * (12 * 8 + 8 * 6), 2 * 6 * (12 * 8 + 8 * 6))


def test_quantized_experts_count_what_they_are_kept_in() -> None:
    def kept(rows: int, depth: int) -> Product:
        made = [int4_groups(torch.ones(rows, depth), 32) for _ in range(5)]
        tensors = {name: torch.stack([each[key] for each in made]) for name, key in KEPT.items()}
        return Product(linear_int4, tensors, {"group_size": 32})

    slots, weights = torch.tensor([[0, 3], [3, 0], [3, 4]]), torch.full((3, 2), 0.5)
    args = torch.ones(3, 64), kept(12, 64), kept(64, 6), weights, slots, silu_and_mul
    cost = op_cost("grouped_experts", args, grouped_experts.reference(*args))
    bytes_each = (12 * 32 + 12 * 2 * 5) + (64 * 3 + 64 * 5)
    assert cost == ("6 pairs, 5 experts by linear_int4", 3 * bytes_each, 2 * 6 * (12 * 64 + 64 * 6))


KEPT = {"weight": "weight", "scale": "weight_scale", "zero": "weight_zero"}


def test_a_packed_weight_counts_its_bytes() -> None:
    weight = PackedWeight.of(torch.zeros(100, dtype=torch.uint8), None, (16, 32), "Q4_0")
    assert op_cost("linear_gguf", [torch.ones(2, 32), weight, []], torch.ones(2, 16)) == (
        "2×32→16 Q4_0", 100, 2 * 2 * 32 * 16,
    )  # fmt: skip


def test_a_window_bounds_what_is_looked_back_on() -> None:
    spec = AttentionSpec(num_heads=4, num_kv_heads=2, head_size=8, scale=1.0, sliding_window=5)
    empty = torch.zeros(0, dtype=torch.int32)
    metadata = AttentionMetadata(
        query_start=empty, seq_lens=empty, block_tables=empty, slot_mapping=empty, query_lens_host=(1, 3),
        seq_lens_host=(20, 7), max_query_len=3, max_seq_len=20, num_decodes=1, block_size=16, prompt_lens=empty,
    )  # fmt: skip
    cost = attention_cost(torch.ones(4, 4, 8), torch.zeros(1, dtype=torch.float16), metadata, spec)
    assert cost.bytes == (5 + 7) * 2 * 2 * 8 * 2
    assert cost.operations == 4 * 4 * 8 * (5 + 3 * 5)


def test_what_cannot_be_timed_has_no_share_of_a_limit() -> None:
    nothing = KernelTime("cache", "1", 1, 0.0, 8, 0)
    found = Breakdown(rows=1, tokens=1, context=1, how="recorded", step=1e-3, executed=8e-4, program=5e-4,
                      ops=[nothing])  # fmt: skip
    assert found.as_dict(MACHINE)["ops"][0]["of_limit"] is None
