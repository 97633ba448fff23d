"""A recorded step taken apart: everything is counted, and nothing is changed by it."""

from collections import Counter
from math import prod

import pytest
import torch
from models import GREEDY, checkpoint, llm, said

from bestiary.nn.graphs import Profiled
from bestiary.nn.ops.packed import PackedWeight

PROMPTS = [[5, 9, 3, 77], [61, 12, 12, 90], [17, 4, 4, 8]]


def profiled(engine):
    """The last step of three rows, and what it consists of, by kernel."""
    said(engine, PROMPTS, [GREEDY] * 3)
    step = engine.engine.executor.runner.graphs.recorded(3)
    assert isinstance(step, Profiled)
    with torch.inference_mode():
        want = [each.clone() for each in step()]
        rows = step.profile(0)
        assert all(torch.equal(got, each) for got, each in zip(step(), want, strict=True))
    return step, rows


def sums(rows, field):
    found = Counter()
    for row in rows:
        found[row.name] += getattr(row, field)
    return found


@pytest.mark.parametrize(
    "options", [{}, {"quantization": "int8"}, {"kv_cache_dtype": "float16"}, {"kv_cache_dtype": "int8"}], ids=str
)
def test_all_products_and_the_cache_are_counted(options):
    with llm(checkpoint("llama"), **options) as engine:
        step, rows = profiled(engine)
        model = engine.engine.executor.runner.model
        packed = [each for each in model.parameters() if isinstance(each, PackedWeight)]
        assert sum(row.calls for row in rows) == len(step.nodes)
        assert len({(row.name, row.shape) for row in rows}) == len(rows)
        assert all(row.seconds >= 0 and row.bytes > 0 for row in rows)
        operations, size = sums(rows, "operations"), sums(rows, "bytes")
        assert operations["matmul"] == 2 * 3 * sum(prod(each.shape_before) for each in packed)
        assert 0 <= sum(each.nbytes for each in packed) - size["matmul"] < 64 * len(packed)
        kept = options.get("kv_cache_dtype", "float16" if options else "float32")
        row = {"float16": 16 * 2, "int8": 16 + 4, "float32": 16 * 4}[kept]
        context = 4 + GREEDY.max_tokens - 1
        assert sum(size[name] for name in size if name.startswith("attention")) == 2 * 3 * context * 2 * 2 * row


def test_experts_and_adapted_models_have_costs_too():
    with llm(checkpoint("mixtral")) as engine:
        _, rows = profiled(engine)
    operations = sums(rows, "operations")
    assert operations["expert_matmul"] == 2 * 2 * (3 * 2) * 3 * 64 * 96
    assert {"topk", "route", "expert_combine"} <= operations.keys()


def test_every_kernel_of_a_step_has_a_cost():
    from bestiary_cpu._abi import KERNELS
    from bestiary_cpu.costs import _COSTS

    loading = {"bst_pack", "bst_quantize_weights", "bst_read"}
    assert set(_COSTS) == set(KERNELS) - loading
