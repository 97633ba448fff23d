"""Limits by hand, percentiles by numpy, interleaving by a fake clock."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from bestiary.api.errors import UsageError
from bestiary.bench.figures import latency, percentiles, throughput
from bestiary.bench.hardware import Hardware, gemm_flops, read_bandwidth
from bestiary.bench.limits import Limits, ModelCost, model_cost
from bestiary.bench.subject import Times, interleave
from bestiary.bench.workload import Workload
from bestiary.nn import ColumnParallelLinear, FusedMoE
from bestiary.nn.ops.packed import PackedWeight
from bestiary.nn.placement import place
from bestiary.nn.quant.base import QuantizationConfig
from bestiary.nn.quant.fp8 import Fp8AtLoadConfig
from bestiary.nn.quant.grouped import Int4Config
from bestiary.nn.quant.int8 import Int8Config

COST = ModelCost(weight_bytes=1000, kv_bytes=10, body_weights=200, head_weights=50, attention_width=4)


def limits(bytes_per_s: float, flops: float) -> Limits:
    return Limits(COST, Hardware("cpu", "x", 1, bytes_per_s, flops, "float32", ""))


def test_limits_by_hand() -> None:
    # 3 prompt tokens: 2 * (200*3 + 50) products, 4 * 4 * (1+2+3) attention
    assert COST.prompt_flops(3) == 1300 + 96
    assert COST.step_bytes([5, 7]) == 1000 + 120
    assert COST.step_flops([5, 7]) == 2 * 250 * 2 + 16 * 12
    slow_memory = limits(100.0, 1e12)
    assert slow_memory.prefill_seconds(3) == pytest.approx(10.0)
    assert slow_memory.decode_seconds([5]) == pytest.approx(10.5)
    # tokens 2 and 3 of an answer to 4 tokens: contexts 5 and 6
    assert slow_memory.decode_tok_s(4, 3) == pytest.approx(2 / (10.5 + 10.6))
    assert slow_memory.output_tok_s([4, 6], 2) == pytest.approx(4 / (10.0 + 11.2))
    slow_products = limits(1e12, 100.0)
    assert slow_products.prefill_tok_s(3) == pytest.approx(3 / 13.96)
    assert slow_products.decode_seconds([5, 7]) == pytest.approx(11.92)


def test_of_experts_only_those_that_are_chosen_count() -> None:
    cost = ModelCost(
        weight_bytes=1000, kv_bytes=10, body_weights=200, head_weights=50, attention_width=4,
        expert_bytes=8000, expert_weights=800, chosen=0.25,
    )  # fmt: skip
    assert cost.prompt_flops(3) == 2 * ((200 + 200) * 3 + 50) + 96
    assert cost.step_bytes([5]) == 1000 + 8000 * 0.25 + 50
    assert cost.step_bytes([5, 7]) == 1000 + 8000 * (1 - 0.75**2) + 120
    assert cost.step_flops([5, 7]) == 2 * (400 + 50) * 2 + 16 * 12
    model = torch.nn.Module()
    model.experts = FusedMoE(8, 2, 16, 24, params_dtype=torch.float32)
    found = model_cost(model)
    assert (found.weight_bytes, found.body_weights) == (0, 0)
    assert (found.expert_weights, found.expert_bytes, found.chosen) == (8 * 3 * 16 * 24, 4 * 8 * 3 * 16 * 24, 0.25)


@pytest.mark.parametrize("config", [Int8Config(), Int4Config(), Fp8AtLoadConfig()])
def test_quantized_weights_are_as_many(config: QuantizationConfig) -> None:
    """Whatever they are kept in, arithmetic is the same, and bytes are what is kept."""
    model = torch.nn.Module()
    model.experts = FusedMoE(8, 2, 16, 24, params_dtype=torch.float32)
    model.fc = ColumnParallelLinear(16, 40, bias=False)
    place(model, config)
    found = model_cost(model)
    assert (found.body_weights, found.expert_weights, found.chosen) == (40 * 16, 8 * 3 * 16 * 24, 0.25)
    assert found.expert_bytes == sum(each.nbytes for each in model.experts.parameters(recurse=False))


def test_packed_weights_are_as_many() -> None:
    model = torch.nn.Module()
    model.fc = ColumnParallelLinear(16, 40, bias=False)
    model.fc._parameters["weight"] = PackedWeight.of(torch.empty(3000, dtype=torch.uint8), None, (40, 16), "own")
    found = model_cost(model)
    assert (found.body_weights, found.weight_bytes) == (40 * 16, 3000)


def test_percentiles_are_numpys() -> None:
    values = [3.0, 1.0, 8.0, 2.0, 2.5]
    found = percentiles(values)
    assert found is not None
    assert [found.p50, found.p90, found.p99] == pytest.approx(np.percentile(values, [50, 90, 99]))
    assert percentiles([]) is None
    one = percentiles([4.0])
    assert one is not None and one.p99 == 4.0


def test_figures_from_times() -> None:
    one = latency(10, [[[2.0, 3.0, 5.0]], [[4.0, 5.0, 6.0]]])
    assert (one.ttft, one.prefill_tok_s) == (3.0, pytest.approx(10 / 3))
    assert one.decode_tok_s == pytest.approx((2 / 3 + 2 / 2) / 2)
    assert one.itl_ms is not None and one.itl_ms.p50 == 1000.0
    many = throughput(20, [[[1.0, 2.0], [2.0, 4.0]]])
    assert (many.requests, many.output_tokens, many.seconds) == (2, 4, 4.0)
    assert (many.output_tok_s, many.total_tok_s) == (1.0, 6.0)


class FakeSubject:
    def __init__(self, name: str, log: list[tuple[str, int]]) -> None:
        self.name, self._log = name, log

    def run(self, prompts: Sequence[list[int]], output_len: int) -> list[Times]:
        self._log.append((self.name, prompts[0][0]))
        return [[float(len(self._log))]]


def test_subjects_take_turns_on_the_same_work_and_the_first_round_does_not_count() -> None:
    log: list[tuple[str, int]] = []
    found = interleave([FakeSubject("a", log), FakeSubject("b", log)], lambda number: [[number]], 1, 2)
    assert log == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2)]
    assert found == {"a": [[[3.0]], [[5.0]]], "b": [[[4.0]], [[6.0]]]}


def test_workload_is_a_function_of_its_seed() -> None:
    work = Workload(50, seed=7)
    assert work.prompt(9, 1) == Workload(50, seed=7).prompt(9, 1) != work.prompt(9, 2)
    assert work.prompt(9, 1) != Workload(50, seed=8).prompt(9, 1)
    lengths = {len(ids) for ids in work.requests(200, 3, 6)}
    assert lengths == {3, 4, 5, 6}
    assert all(0 <= token < 50 for ids in work.requests(20, 3, 6) for token in ids)
    with pytest.raises(UsageError, match="range"):
        work.requests(2, 5, 4)


def test_hardware_is_measured() -> None:
    rate, how = read_bandwidth(sizes=(1 << 20,), repeats=1)
    assert rate > 1e6 and how.endswith("of 1 MiB")
    assert gemm_flops(64, torch.float32, "cpu", repeats=1) > 1e6
