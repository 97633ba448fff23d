"""Packages that register themselves through `vllm.general_plugins`, asked and called as core does."""

import json
import sys

import pytest
import torch
from corpus_check import SIZES
from transformers import CONFIG_MAPPING
from wheel_site import add_wheel

from bestiary import LLM
from bestiary.api.registry import ModelRegistry, Registry
from bestiary.testing.fake_site import GOOD, Site
from bestiary.testing.logits import prompt_logits
from bestiary.testing.reference import randomize, reference_logits, save_reference, transformers_reference
from bestiary_vllm.shims import registries

MODEL = "from vllm.logger import init_logger\nlogger = init_logger(__name__)\n" + GOOD.format(name="ThirdForCausalLM")

FUNCTIONS = """
def register():
    from vllm import ModelRegistry
    from transformers import AutoConfig, PretrainedConfig
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParser, ToolParserManager
    from vllm.transformers_utils.config import _CONFIG_REGISTRY

    class ThirdConfig(PretrainedConfig):
        model_type = "third"

    class FourthConfig(PretrainedConfig):
        model_type = "fourth"

    @ToolParserManager.register_module(["third"])
    class ThirdParser(ToolParser):
        pass

    assert _CONFIG_REGISTRY["llama"].model_type == _CONFIG_REGISTRY.get("llama").model_type == "llama"
    assert _CONFIG_REGISTRY.get("nobody's") is None
    AutoConfig.register("third", ThirdConfig)
    dict.__setitem__(_CONFIG_REGISTRY, "fourth", FourthConfig)
    MODELS_CONFIG_MAP["ThirdForCausalLM"] = VerifyAndUpdateConfig
    ToolParserManager.tool_parsers.pop("another", None)
    ReasoningParserManager.register_lazy_module("third", "absent.module", "Class")
    if "ThirdForCausalLM" not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model("ThirdForCausalLM", "third_model:ThirdForCausalLM")


def plain():
    from vllm import ModelRegistry

    ModelRegistry.register_model("ThirdForCausalLM", "third_model:ThirdForCausalLM")


def missing():
    from vllm.model_executor.layers.linear import NoSuchLinear
"""


ENGINE = """
def register():
    from transformers import AutoConfig, LlamaConfig
    from vllm import ModelRegistry

    class FifthConfig(LlamaConfig):
        model_type = "fifth"

    AutoConfig.register("fifth", FifthConfig)
    ModelRegistry.register_model("FifthForCausalLM", "fifth.model:FifthForCausalLM")
"""


def test_a_model_of_a_package_that_registers_itself_equals_its_reference(tmp_path, monkeypatch):
    site = Site(tmp_path / "site")
    monkeypatch.syspath_prepend(str(site.root))
    monkeypatch.setenv("BESTIARY_CACHE", str(tmp_path / "cache"))
    add_wheel(site)
    site.add("fifth-model", api=None, module="unused", groups={"vllm.general_plugins": {"fifth": "fifth:register"}})
    (site.root / "fifth").mkdir()
    (site.root / "fifth/__init__.py").write_text(ENGINE)
    (site.root / "fifth/model.py").write_text(
        "from vllm.model_executor.models.llama import LlamaForCausalLM\n\n\n"
        "class FifthForCausalLM(LlamaForCausalLM):\n    pass\n"
    )
    torch.manual_seed(0)
    config = {"model_type": "llama", **SIZES}
    reference = transformers_reference(config, "LlamaForCausalLM").eval()
    randomize(reference)
    folder = tmp_path / "checkpoint"
    save_reference(reference, folder, config, "LlamaForCausalLM")
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(written | {"model_type": "fifth", "architectures": ["FifthForCausalLM"]})
    )
    ModelRegistry.refresh()
    try:
        options = {"dtype": "float32", "device": "cpu", "kernels": "torch", "skip_tokenizer_init": True}
        llm = LLM(str(folder), progress=False, **options)
        ids = list(range(3, 30))
        torch.testing.assert_close(prompt_logits(llm, ids), reference_logits(reference, ids), atol=1e-4, rtol=1e-4)
        (row,) = [row for row in ModelRegistry.list_registrars() if row.distribution == "fifth-model"]
        assert (row.architectures, row.also) == (("FifthForCausalLM",), ("configuration fifth",))
    finally:
        ModelRegistry.refresh()
        CONFIG_MAPPING._extra_content.pop("fifth", None)
        for name in [name for name in sys.modules if name.partition(".")[0] == "fifth"]:
            del sys.modules[name]


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.setenv("BESTIARY_CACHE", str(tmp_path / "cache"))
    site = Site(tmp_path / "site")
    monkeypatch.syspath_prepend(str(site.root))
    before = set(sys.modules)
    add_wheel(site)
    (site.root / "third_model.py").write_text(MODEL)
    yield site
    for name in set(sys.modules) - before:
        if name.startswith("third"):
            del sys.modules[name]
    for name in ("third", "fourth"):
        CONFIG_MAPPING._extra_content.pop(name, None)
    kept = (registries.CONFIGS, registries.MODELS_CONFIG_MAP, registries.ToolParserManager.known)
    for table in (*kept, registries.ReasoningParserManager.lazy_parsers):
        table.clear()


def add_package(site, **functions):
    points = {name: f"third:{function}" for name, function in functions.items()}
    site.add("third", api=None, source=FUNCTIONS, groups={"vllm.general_plugins": points})


def test_a_package_is_found_asked_elsewhere_and_called_for_its_architecture(site):
    add_package(site, third="register", broken="missing")
    registry = Registry([str(site.root)], cache_directory=site.root / "cache")
    found = registry.find(["ThirdForCausalLM"], guarded=True)
    assert found.model_class.__module__ == "third_model"
    assert [name for name in sys.modules if name.startswith("vllm")] == []
    assert [CONFIG_MAPPING[name].model_type for name in ("third", "fourth")] == ["third", "fourth"]
    rows = {row.name: row for row in registry.list_registrars()}
    assert rows.keys() == {"third", "broken"}, "the wheel's own function speaks to real vLLM alone"
    assert rows["third"].architectures == ("ThirdForCausalLM",)
    assert rows["third"].also == (
        "configuration fourth",
        "configuration third",
        "check of the configuration of ThirdForCausalLM (not made)",
        "reasoning parser third (not used: Bestiary has its own)",
        "tool parser third (not used: Bestiary has its own)",
    )
    assert "NoSuchLinear is not served by bestiary-vllm" in rows["broken"].cause
    assert "ThirdForCausalLM" not in ModelRegistry.architectures()


def test_it_can_be_inspected_without_being_called_here(site):
    add_package(site, third="plain")
    registry = Registry([str(site.root)], cache_directory=site.root / "cache")
    (row,) = registry.list("run")
    assert (row.architecture, row.distribution, row.status) == ("ThirdForCausalLM", "third", "ok")
    assert row.info is not None and row.info.categories == ("text_generation",)
    assert "third" not in sys.modules
