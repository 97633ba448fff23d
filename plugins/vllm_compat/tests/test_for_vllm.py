"""Architectures given to real vLLM. It does not run here: a stand-in of its registry and of some layers takes its
place, in processes of their own, so what is shown is which files are given, and that they find vLLM's names."""

import json
import subprocess
import sys

import pytest
from wheel_site import add_wheel

from bestiary.testing.fake_site import Site
from bestiary_vllm import for_vllm

STAND_IN = {
    "__init__": "from .model_executor.models.registry import ModelRegistry\n",
    "config": "class VllmConfig: pass\n",
    "sequence": "class IntermediateTensors: pass\n",
    "model_executor/__init__": "",
    "model_executor/layers/__init__": "",
    "model_executor/layers/linear": "class QKVParallelLinear:\n    origin = 'vllm'\n",
    "model_executor/layers/attention/__init__": "class Attention:\n    origin = 'vllm'\n",
    "model_executor/models/__init__": "",
    "model_executor/models/utils": "class AutoWeightsLoader:\n    origin = 'vllm'\n",
    "model_executor/models/registry": (
        "class _Registry:\n"
        "    models = {'LlamaForCausalLM': 'its own'}\n"
        "    def get_supported_archs(self):\n        return self.models.keys()\n"
        "    def register_model(self, name, value):\n        self.models[name] = value\n"
        "ModelRegistry = _Registry()\n"
    ),
}

SHARED = """\
from bestiary.api import IntermediateTensors, VllmConfig
from bestiary.nn import Attention, AutoWeightsLoader
from .part import layer


class SharedForCausalLM:
    used = (Attention, AutoWeightsLoader, layer())

    def __init__(self, *, vllm_config, prefix=""):
        self.attn = Attention(2, 8, 1.0, prefix=f"{prefix}.attn")

    def load_weights(self, weights):
        return AutoWeightsLoader(self).load_weights(weights)
"""
PART = """\
def layer():
    from bestiary.nn import QKVParallelLinear
    return QKVParallelLinear
"""
OWN = """\
from bestiary.nn import Attention, num_weights
from bestiary.engine import runner


class OwnForCausalLM:
    def __init__(self, *, vllm_config, prefix=""):
        self.attn = Attention(2, 8, 1.0)
"""
NATIVE = "from vllm.config import VllmConfig\n\n\nclass NativeForCausalLM:\n    config = VllmConfig\n"

ASK = """\
import importlib, json, logging
logging.basicConfig(level=logging.INFO, format="%(message)s")
from bestiary_vllm.for_vllm import register
register()
from vllm import ModelRegistry
given = dict(ModelRegistry.models)
module, _, name = given["SharedForCausalLM"].partition(":")
model = getattr(importlib.import_module(module), name)
native = getattr(importlib.import_module(given["NativeForCausalLM"].partition(":")[0]), "NativeForCausalLM")
import bestiary.api
print(json.dumps({
    "given": given,
    "origins": [each.origin for each in model.used],
    "file": importlib.import_module(module).__file__,
    "native": native.config.__module__,
    "core": bestiary.api.VllmConfig.__module__,
}))
"""


@pytest.fixture
def site(tmp_path):
    site = Site(tmp_path / "site")
    add_wheel(site)
    package = site.root / "shared_model"
    package.mkdir()
    for name, text in {"__init__": "", "model": SHARED, "part": PART}.items():
        (package / f"{name}.py").write_text(text)
    models = {"SharedForCausalLM": "shared_model.model:SharedForCausalLM", "LlamaForCausalLM": "shared_model.model:X"}
    site.add("shared", models=models)
    site.add("own", models={"OwnForCausalLM": "own:OwnForCausalLM"}, source=OWN)
    site.add("native", models={"NativeForCausalLM": "native:NativeForCausalLM"}, source=NATIVE)
    return site


def ask(site, code, *, with_vllm):
    path = [str(site.root), *sys.path]
    if with_vllm:
        for name, text in STAND_IN.items():
            file = site.root / "real/vllm" / f"{name}.py"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        path.insert(0, str(site.root / "real"))
    run = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": ":".join(path)}, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    return run


def test_vllm_is_given_what_uses_the_shared_vocabulary_alone(site):
    run = ask(site, ASK, with_vllm=True)
    answer = json.loads(run.stdout)
    given = answer["given"]
    assert given["SharedForCausalLM"] == "bestiary_given.shared_model.model:SharedForCausalLM"
    assert answer["origins"] == ["vllm", "vllm", "vllm"], "its own files and functions too find vLLM's"
    assert answer["file"] == str(site.root / "shared_model/model.py")
    assert (given["NativeForCausalLM"], answer["native"]) == ("native:NativeForCausalLM", "vllm.config")
    assert given["LlamaForCausalLM"] == "its own"
    assert "OwnForCausalLM" not in given
    assert answer["core"] == "bestiary.api.config", "nobody else's imports are touched"
    assert "OwnForCausalLM of own 1.0 is not given to vLLM" in run.stderr
    for reason in (
        "vLLM has nothing like bestiary.engine.runner",
        "vLLM has nothing like bestiary.nn.num_weights",
        "Attention is built without prefix= (line 7), by which vLLM tells layers apart",
        "OwnForCausalLM has no load_weights: it leaves that to Bestiary",
    ):
        assert reason in run.stderr


def test_it_does_nothing_where_vllm_is_not_installed(site):
    code = "import sys; from bestiary_vllm.for_vllm import register; register(); print('vllm' in sys.modules)"
    assert ask(site, code, with_vllm=False).stdout == "False\n"


def test_every_name_of_the_authoring_vocabulary_that_vllm_has_is_known():
    homes = for_vllm.homes()
    assert homes["QKVParallelLinear"] == ("vllm.model_executor.layers.linear", "QKVParallelLinear")
    assert homes["VllmConfig"] == ("vllm.config", "VllmConfig")
    assert homes["Attention"] == ("vllm.model_executor.layers.attention", "Attention")
    assert homes["get_rope"] == ("vllm.model_executor.layers.rotary_embedding", "get_rope")
    assert "SamplerOutput" not in homes, "an older spelling"
