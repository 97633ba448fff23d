"""Whole models on native kernels: beside torch's, recorded beside op by op, alone beside in a batch."""

import logging

import models
import pytest
import torch
from models import CONFIGS, PROMPTS, checkpoint, differences, furthest, llm, said

from bestiary import SamplingParams
from bestiary.api.errors import EngineError, UsageError
from bestiary.nn.cuda.graphs import CudaGraphs
from bestiary.nn.graphs import NotRecordable
from bestiary_cpu.steps import NativeStepRecorder

FP16, INT8 = {"kv_cache_dtype": "float16"}, {"kv_cache_dtype": "int8"}


def steps(engine):
    return engine.engine.executor.runner.graphs


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_says_what_it_says_on_torch(name):
    path = checkpoint(name)
    with llm(path, "torch") as torch_:
        want = said(torch_)
    with llm(path) as native:
        got = said(native)
        recorded = steps(native)
        assert native.engine.ops["linear"] == "native" and recorded.steps.keys() >= {(4, False)}
        assert not recorded.refused
    with llm(path, enforce_eager=True) as eager:
        assert steps(eager) is None
        assert said(eager) == got
    assert furthest(got, want) < 2e-4


@pytest.mark.parametrize(
    "options", [{}, FP16, INT8, {"deterministic": True}], ids=["plain", "fp16 cache", "int8 cache", "deterministic"]
)
@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "bloom"])
def test_a_row_depends_on_nothing_but_its_sequence(name, options):
    """Whatever else is in the batch, in whatever pieces its prompt was computed, recorded or not: the same bits."""
    with llm(checkpoint(name), enable_prefix_caching=False, **options) as engine:
        together = said(engine)
        alone = [said(engine, [ids])[0] for ids in PROMPTS]
    with llm(checkpoint(name), max_num_batched_tokens=50, enable_prefix_caching=False, **options) as engine:
        in_pieces = said(engine)
    assert together == alone == in_pieces


@pytest.mark.parametrize("name", ["llama", "qwen3", "bloom"])
def test_an_int8_cache_is_a_rounding_away_from_a_float_one(name):
    with llm(checkpoint(name)) as wide, llm(checkpoint(name), **INT8) as narrow:
        caches = [one.engine.executor.runner.kv_caches.values() for one in (wide, narrow)]
        assert not steps(narrow).refused
        found = differences(said(narrow), said(wide))
    sizes = [sum(each.nbytes for each in one) for one in caches]
    assert sizes[1] * 16 * 4 == sizes[0] * (16 + 4)  # heads have 16 channels
    assert 0 < found[len(found) // 2] < 0.04 and found[-1] < 0.2


def test_an_int8_cache_needs_these_kernels():
    with pytest.raises(UsageError, match="no attention backend") as caught:
        llm(checkpoint("llama"), "torch", **INT8)
    assert "torch: has no place for the scales of an int8 cache; fp8 needs none" in caught.value.details


@pytest.mark.parametrize("name", ["llama", "mixtral"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_weights_stay_narrow(name, dtype):
    """Half the memory, and the numbers of a model whose weights were widened."""
    path = checkpoint(name, dtype)
    with llm(path, kv_cache_dtype="float32") as native, llm(path, "torch", dtype="float32") as wide:
        config = native.engine.vllm_config.model_config
        assert (config.dtype, config.weights_dtype) == (torch.float32, dtype)
        parts = [sum(each.nbytes for each in one.engine.executor.runner.model.parameters()) for one in (native, wide)]
        assert parts[0] < 0.56 * parts[1]
        assert furthest(said(native), said(wide)) < 2e-4


@pytest.mark.parametrize(
    ("dtype", "options", "kept"),
    [
        (torch.float32, {}, torch.float32),
        (torch.bfloat16, {}, torch.bfloat16),
        (torch.float16, {}, torch.float16),
        (torch.float32, {"quantization": "int8"}, torch.float16),
        (torch.float32, {"quantization": "int8", "kv_cache_dtype": "float32"}, torch.float32),
        (torch.bfloat16, {"kernels": "torch", "dtype": "float32"}, torch.float32),
    ],
)
def test_the_cache_is_as_narrow_as_the_weights(dtype, options, kept):
    with llm(checkpoint("llama", dtype), **{"kernels": "auto", **options}) as engine:
        assert {cache.dtype for cache in engine.engine.executor.runner.kv_caches.values()} == {kept}


def test_more_sequences_come_and_go_than_were_recorded():
    """Steps of every size, most of them replayed, while sequences of all lengths begin and end."""
    prompts = [[3 + (7 * index + place) % 150 for place in range(1 + index * 5 % 37)] for index in range(23)]
    params = [
        SamplingParams(temperature=0, max_tokens=1 + index * 3 % 11, ignore_eos=True, logprobs=3) for index in range(23)
    ]
    with llm(checkpoint("llama"), max_num_seqs=9) as engine:
        first, again = said(engine, prompts, params), said(engine, prompts, params)
        assert len(steps(engine).steps) >= 5
    with llm(checkpoint("llama"), max_num_seqs=9, enforce_eager=True) as eager:
        assert said(eager, prompts, params) == first == again


@pytest.mark.parametrize("name", ["llama", "qwen3_moe"])
def test_steps_of_few_sizes_have_rows_that_nobody_asked_for(name, monkeypatch):
    """As CUDA graphs have them: a step of three sequences is computed as one of four, and says the same."""
    path = checkpoint(name)
    prompts = [PROMPTS[each % len(PROMPTS)] for each in range(11)]
    with llm(path) as exactly:
        want = said(exactly, prompts), said(exactly, prompts[:3])
        assert {11, 3} <= {rows for rows, _ in steps(exactly).steps}
    monkeypatch.setattr(NativeStepRecorder, "padded", staticmethod(CudaGraphs.padded), raising=False)
    with llm(path) as padded:
        assert (said(padded, prompts), said(padded, prompts[:3])) == want
        assert {rows for rows, _ in steps(padded).steps} <= {1, 2, 4, 8, 16}
        assert {len(each) for each in padded.engine.executor.runner.kv_caches.values()} == {128 + 1}


def test_a_step_that_looks_at_numbers_runs_op_by_op(monkeypatch, caplog):
    with llm(checkpoint("llama")) as engine:
        want = said(engine)
    with llm(checkpoint("llama")) as engine, caplog.at_level(logging.WARNING, "bestiary"):
        kind = type(engine.engine.executor.runner.model)
        plain = kind.forward

        def looking(self, input_ids, positions, **more):
            assert input_ids.max().item() >= 0
            return plain(self, input_ids=input_ids, positions=positions, **more)

        monkeypatch.setattr(kind, "forward", looking)
        assert said(engine) == want
        assert steps(engine).refused == {False}
    lines = [record.message for record in caplog.records if "cannot be recorded" in record.message]
    assert len(lines) == 1 and "_local_scalar_dense looks at numbers" in lines[0]


def test_a_packed_weight_is_not_taken_for_a_matrix():
    with llm(checkpoint("llama")) as engine:
        weight = engine.engine.executor.runner.model.model.layers[0].mlp.down_proj.weight
        with pytest.raises(EngineError, match=r"a packed weight is no matrix: linear cannot read it") as caught:
            torch.nn.functional.linear(torch.ones(1, 96), weight)
        assert caught.value.value == [64, 96] and "linear=reference" in caught.value.fix


def test_plain_weights_can_be_kept():
    """One op can be torch's while others are not."""
    with llm(checkpoint("qwen3"), ops={"linear": "reference", "embedding": "reference"}) as mixed:
        assert mixed.engine.ops["rms_norm"] == "native"
        got = said(mixed)
    with llm(checkpoint("qwen3")) as native:
        assert models.furthest(got, said(native)) < 2e-4


def test_steps_of_all_sizes_are_captured_at_the_start(monkeypatch, capsys):
    """No request records anything then, and what is said stays the same."""
    path, prompts = checkpoint("llama"), [PROMPTS[each % len(PROMPTS)] for each in range(11)]
    with llm(path) as lazily:
        want = said(lazily, prompts), said(lazily, prompts[:3])
    monkeypatch.setattr(NativeStepRecorder, "padded", staticmethod(CudaGraphs.padded), raising=False)
    with llm(path, capture_sizes="at_start", max_num_seqs=20, progress=True) as ready:
        captured = [(24, False), (16, False), (8, False), (4, False), (2, False), (1, False)]
        assert list(steps(ready).steps) == captured
        monkeypatch.setattr(steps(ready).recorder, "record", None, raising=False)
        assert (said(ready, prompts), said(ready, prompts[:3])) == want
        assert sorted(steps(ready).steps, reverse=True) == captured
    lines = capsys.readouterr().err
    assert "capturing steps: 6 of 6" in lines and "captured decode steps of 6 sizes in" in lines


def test_steps_of_many_sizes_are_recorded_as_they_come():
    with llm(checkpoint("llama"), capture_sizes="at_start") as engine:
        assert not steps(engine).steps


def test_a_model_that_cannot_be_captured_says_so_at_the_start(monkeypatch, caplog):
    monkeypatch.setattr(NativeStepRecorder, "padded", staticmethod(CudaGraphs.padded), raising=False)

    def refusing(self, step):
        raise NotRecordable("it looks away")

    monkeypatch.setattr(NativeStepRecorder, "record", refusing)
    with caplog.at_level(logging.WARNING, "bestiary"), llm(checkpoint("llama"), capture_sizes="at_start") as engine:
        assert steps(engine).refused == {False} and not steps(engine).steps
        assert [len(each) for each in said(engine)] == [6] * len(PROMPTS)
    assert len([each for each in caplog.records if "it looks away" in each.message]) == 1
