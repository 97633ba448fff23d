"""`bestiary port`: what a file needs, and the project around it."""

import json
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner
from wheel_site import PROJECT, add_wheel

from bestiary.api.errors import BadTarget, UsageError
from bestiary.testing.fake_site import Site
from bestiary_vllm.port import command
from bestiary_vllm.port.reading import read

CORPUS = Path(__file__).parent / "corpus_vllm"

FILE = '''\
"""A model file."""
import math
from typing import TYPE_CHECKING

import torch
import absent_package
import vllm.envs as envs
from vllm.model_executor.layers.activation import SiluAndMul
from vllm.model_executor.layers.attention import RSWAAttention
from vllm.model_executor.layers.linear import ColumnParallelLinear
from vllm.model_executor.model_loader.weight_utils import no_such_loader

from .interfaces import SupportsPP
from .neighbour import Block
from .utils import maybe_prefix

try:
    from vllm.another_vendor import kernel
except ImportError:
    kernel = None

if TYPE_CHECKING:
    from vllm.only_types import Nothing


class TinyForCausalLM(torch.nn.Module, SupportsPP):
    def __init__(self, *, vllm_config, prefix=""):
        import another_absent_package
        from vllm.attention import Attention

        self.act = SiluAndMul(colour="red")
        self.flag = envs.VLLM_USE_V1
'''


@pytest.fixture
def model_file(tmp_path):
    folder = tmp_path / "given"
    folder.mkdir()
    (folder / "neighbour.py").write_text("from torch import nn\n\n\nclass Block(nn.Module):\n    pass\n")
    (folder / "utils_of_nobody.py").write_text("raise SystemExit\n")
    file = folder / "tiny.py"
    file.write_text(FILE)
    return file


def port(*arguments, code=0):
    result = CliRunner().invoke(command.port, [str(each) for each in arguments], standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    assert result.return_value == code, result.output
    return result


def ported(*arguments, code=0):
    return json.loads(port(*arguments, "--json", code=code).stdout)


def test_what_a_file_needs_is_looked_up_and_nothing_of_it_imported(model_file, tmp_path):
    document = ported(model_file, "--into", tmp_path / "out", code=3)
    needs = {need["name"]: need for need in document["needs"]}
    assert needs["absent_package"]["missing"]
    loader = needs["vllm.model_executor.model_loader.weight_utils:no_such_loader"]
    assert loader["missing"] and "its table does not have it" in loader["why"]
    assert loader["places"] == ["tiny.py:11"]
    window = needs["vllm.model_executor.layers.attention:RSWAAttention"]
    assert (window["state"], window["missing"]) == ("an error when used", False) and window["why"]
    vendor = needs["vllm.another_vendor:kernel"]
    assert (vendor["state"], vendor["how"], vendor["missing"]) == ("not served", "optional", False)
    later = needs["another_absent_package"]
    assert (later["state"], later["how"], later["missing"]) == ("not installed", "later", False)
    assert needs["vllm.attention:Attention"]["state"] == "older"
    assert needs["vllm.model_executor.layers.activation:SiluAndMul"]["unknown_keywords"] == ["colour"]
    assert needs["vllm.model_executor.models.neighbour:Block"]["state"] == "beside"
    assert needs["vllm.model_executor.models.utils:maybe_prefix"]["state"] == "served"
    assert needs["vllm.envs:VLLM_USE_V1"]["state"] in ("served", "not served")
    assert not {"math", "typing", "vllm.only_types:Nothing"} & needs.keys()
    assert document["not_certified"] == "something that it needs is missing"
    assert "given" not in str([name for name in sys.modules if "tiny" in name])


def test_the_project_holds_the_files_as_they_are_and_what_relative_imports_find(model_file, tmp_path):
    document = ported(model_file, "--into", tmp_path / "out", "--name", "My.Tiny", code=3)
    package = tmp_path / "out/src/my_tiny"
    assert (package / "tiny.py").read_bytes() == model_file.read_bytes()
    assert (package / "neighbour.py").exists() and not (package / "utils_of_nobody.py").exists()
    assert "from vllm.model_executor.models.utils import maybe_prefix" in (package / "utils.py").read_text()
    assert "VLLM_MODEL_FILES = True" in (package / "__init__.py").read_text()
    project = tomllib.loads((tmp_path / "out/pyproject.toml").read_text())
    assert project["project"]["name"] == "my-tiny"
    own = tomllib.loads(PROJECT.read_text())["project"]["dependencies"]
    assert project["project"]["dependencies"] == [own[0], own[0].replace("bestiary", "bestiary-vllm")]
    assert project["project"]["entry-points"]["vllm_models"] == {"TinyForCausalLM": "my_tiny.tiny:TinyForCausalLM"}
    assert document["architectures"] == {"TinyForCausalLM": "my_tiny.tiny:TinyForCausalLM"}
    for path in (tmp_path / "out").rglob("*.py"):
        compile(path.read_text(), path, "exec")
    with pytest.raises(UsageError, match="not empty"):
        port(model_file, "--into", tmp_path / "out")


def test_a_package_stays_under_its_name_and_what_it_registers_counts(tmp_path):
    package = tmp_path / "third"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text(
        "def register():\n    from vllm import ModelRegistry\n"
        "    ModelRegistry.register_model('ThirdModel', 'third.models.core:Inner')\n"
    )
    (package / "models/__init__.py").write_text("")
    (package / "models/core.py").write_text("from .parts import x\nfrom third import y\nclass Inner: pass\n")
    (package / "models/parts.py").write_text("x = 1\n")
    (package / "data.json").write_text("{}")
    (package / "parser.py").write_text("from vllm.nothing import Parser\n")
    document = ported(package, "--into", tmp_path / "out")
    assert document["architectures"] == {"ThirdModel": "third.models.core:Inner"}
    assert (tmp_path / "out/src/third/data.json").exists()
    points = tomllib.loads((tmp_path / "out/pyproject.toml").read_text())["project"]["entry-points"]
    assert points["vllm.general_plugins"] == {"register": "third:register"}
    needs = {need["name"]: need for need in document["needs"]}
    assert (needs["vllm.nothing:Parser"]["how"], needs["vllm.nothing:Parser"]["missing"]) == ("later", False)
    assert {need["state"] for need in needs.values()} == {"served", "beside", "not served"}
    assert document["not_certified"].startswith("transformers has no ThirdModel")


@pytest.mark.parametrize(
    ("text", "message"),
    [("x = (", "it is not Python"), ("x = 1", "no class in it is a model's"), (None, "no such file or folder")],
)
def test_what_cannot_be_ported_is_an_error_with_its_reason(tmp_path, text, message):
    path = tmp_path / "bad.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(BadTarget, match=message) as raised:
        port(path, "--into", tmp_path / "out")
    assert raised.value.error_code == "NOT_PORTABLE"
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_a_package_says_which(tmp_path):
    (tmp_path / "src/inner").mkdir(parents=True)
    (tmp_path / "src/inner/__init__.py").write_text("")
    with pytest.raises(BadTarget) as raised:
        port(tmp_path)
    assert raised.value.fix == f"name the package in it: {tmp_path / 'src/inner'}"


def test_imports_two_folders_up_are_read_from_vllms_tree(tmp_path):
    path = tmp_path / "deep.py"
    path.write_text(
        "from ..layers.layernorm import RMSNorm\nfrom .utils import make_layers\nclass DeepForCausalLM(object): pass\n"
    )
    document = ported(path, "--into", tmp_path / "out", "--no-certify")
    assert "src/ported_deep/models/deep.py" in document["files"]
    text = (tmp_path / "out/src/ported_deep/layers/layernorm.py").read_text()
    assert "from vllm.model_executor.layers.layernorm import RMSNorm" in text
    assert document["architectures"] == {"DeepForCausalLM": "ported_deep.models.deep:DeepForCausalLM"}


def test_relative_imports_of_a_package_are_resolved(tmp_path):
    path = tmp_path / "a.py"
    path.write_text("from . import b\nfrom ..c import d\nimport e.f\n")
    uses = [(use.module, use.name, use.level) for use in read(path, "top.inner").uses]
    assert uses == [("top.inner", "b", 1), ("top.c", "d", 2), ("e.f", None, 0)]


@pytest.mark.full
def test_a_ported_file_is_certified(tmp_path, monkeypatch):
    site = Site(tmp_path / "site")
    add_wheel(site)
    monkeypatch.setenv("PYTHONPATH", ":".join([str(site.root), *sys.path]))
    monkeypatch.setenv("BESTIARY_CACHE", str(tmp_path / "cache"))
    result = CliRunner().invoke(
        command.port, [str(CORPUS / "llama_now.py"), "--into", str(tmp_path / "out"), "--json"], standalone_mode=False
    )
    found = json.loads(result.stdout)["certificate"]
    checks = [check for row in found["architectures"] for check in row["checks"]]
    assert [check["message"] for check in checks if check["status"] == "failed"] == []
    assert found["verdict"] == "certified" and found["counts"]["passed"] > 20
    assert result.return_value == 0
