"""Packages that register themselves through `vllm.general_plugins`, asked and called as core does."""

import sys

import pytest
from wheel_site import add_wheel

from bestiary.api.registry import ModelRegistry, Registry
from bestiary.testing.fake_site import GOOD, Site
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


def missing():
    from vllm.model_executor.layers.linear import NoSuchLinear
"""


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.setenv("BESTIARY_CACHE", str(tmp_path / "cache"))
    site = Site(tmp_path / "site")
    monkeypatch.syspath_prepend(str(site.root))
    before = set(sys.modules)
    add_wheel(site)
    (site.root / "third_model.py").write_text(MODEL)
    functions = {"third": "third:register", "broken": "third:missing"}
    site.add("third", api=None, source=FUNCTIONS, groups={"vllm.general_plugins": functions})
    yield site
    for name in set(sys.modules) - before:
        if name.startswith("third"):
            del sys.modules[name]
    mapping = sys.modules["transformers"].CONFIG_MAPPING
    for name in ("third", "fourth"):
        mapping._extra_content.pop(name, None)
    kept = (registries.CONFIGS, registries.MODELS_CONFIG_MAP, registries.ToolParserManager.known)
    for table in (*kept, registries.ReasoningParserManager.lazy_parsers):
        table.clear()


def test_a_package_is_found_asked_elsewhere_and_called_for_its_architecture(site):
    registry = Registry([str(site.root)], cache_directory=site.root / "cache")
    found = registry.find(["ThirdForCausalLM"], guarded=True)
    assert found.model_class.__module__ == "third_model"
    assert [name for name in sys.modules if name.startswith("vllm")] == []
    from transformers import CONFIG_MAPPING

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
    registry = Registry([str(site.root)], cache_directory=site.root / "cache")
    (row,) = registry.list("run")
    assert (row.architecture, row.distribution, row.status) == ("ThirdForCausalLM", "third", "ok")
    assert row.info is not None and row.info.categories == ("text_generation",)
    assert "third" not in sys.modules
