"""What `inspect` and `doctor` say of native kernels, beside what an engine then has."""

import re

import pytest
from models import checkpoint, llm, said

import bestiary_cpu
from bestiary.engine.arguments import EngineArgs
from bestiary.nn.ops.packed import PackedWeight
from bestiary.serve.cli import machine
from bestiary.serve.cli.examine import examine


def runs_on(name, kernels="auto", **options):
    return examine(EngineArgs(model=checkpoint(name), kernels=kernels, device="cpu", **options))["runs_on"]


@pytest.mark.parametrize(
    ("name", "options", "form"),
    [("llama", {}, "F32"), ("qwen3_moe", {}, "F32"), ("mixtral", {"quantization": "int8"}, "Q8_0")],
)
def test_what_is_packed_is_known_before_loading(name, options, form):
    """As many layers of that form as the engine then has; a head that is the embedding counts once."""
    told = re.findall(r"(\d+) (\w+)", runs_on(name, **options)["packed_layers"])
    with llm(checkpoint(name), **options) as engine:
        model = engine.engine.executor.runner.model
        packed = [each for each in model.parameters() if isinstance(each, PackedWeight)]
    count = sum(each.contents.count if hasattr(each.contents, "count") else 1 for each in packed if each.form == form)
    assert {form: int(count) for count, form in told}[form] == count > 0


def test_the_recorder_or_why_there_is_none():
    assert runs_on("llama")["step_recorder"] == "native"
    assert runs_on("llama", enforce_eager=True)["step_recorder"] == "none: enforce_eager"
    plain = runs_on("llama", kernels="torch")
    assert plain["step_recorder"] == "none: cuda_graphs: for CUDA" and plain["packed_layers"] is None


def test_the_library_says_what_it_is(monkeypatch):
    monkeypatch.setenv("BESTIARY_KERNELS", "auto")
    hooks = machine.load_hooks({})
    found = machine.kernels("cpu", hooks, machine.attention_backends("cpu", hooks))
    assert (found["native"], found["attention_backend"]) == ("used where they can run", "native")
    library = found["libraries"]["native"]
    assert library["instruction_set"] == bestiary_cpu.library().isa and library["threads"] >= 1
    assert library["instruction_set"] in library["processor_runs"].split(", ")


def test_without_a_library_torch_computes_and_a_line_says_so(monkeypatch, caplog):
    from bestiary.api.errors import BrokenPlugin
    from bestiary_cpu import _library

    def missing():
        raise BrokenPlugin("bestiary-cpu has no library for scalar")

    with llm(checkpoint("llama"), "torch") as torch_:
        want = said(torch_)
    monkeypatch.setattr(_library, "library", missing)
    _library.why_not.cache_clear()
    try:
        with llm(checkpoint("llama")) as engine:
            assert engine.engine.ops["linear"] == "by_shape" and engine.engine.executor.runner.graphs is None
            assert said(engine) == want
    finally:
        _library.why_not.cache_clear()
    assert [r.message for r in caplog.records].count(
        "native kernels are not used, torch computes: bestiary-cpu has no library for scalar"
    ) == 1


def test_one_line_says_whose_kernels_run(capfd):
    for kernels, line in (("auto", "kernels: native (bestiary-cpu "), ("torch", "kernels: torch\n")):
        llm(checkpoint("llama"), kernels, progress=True).close()
        assert line in capfd.readouterr().err
