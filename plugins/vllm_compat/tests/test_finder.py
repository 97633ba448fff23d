"""Who finds vLLM's paths, and who does not; what is said of names that are not served."""

import importlib
import sys
import textwrap

import pytest

import bestiary_vllm
from bestiary_vllm import finder, modules, table


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Writes modules of a package `imp_…` of this test's own, and imports it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"imp_{abs(hash(str(tmp_path)))}"

    def write(**files):
        (tmp_path / name).mkdir(exist_ok=True)
        for stem, text in {"__init__": "", **files}.items():
            (tmp_path / name / f"{stem}.py").write_text(textwrap.dedent(text))
        importlib.invalidate_caches()
        return name

    yield write
    for each in [each for each in sys.modules if each.startswith(name)]:
        del sys.modules[each]


def is_found() -> bool:
    return importlib.util.find_spec("vllm") is not None


def test_nobody_else_finds_anything():
    assert not is_found()
    with bestiary_vllm.serving():
        assert is_found()
        importlib.import_module("vllm.config")
    assert not is_found()
    assert [name for name in sys.modules if name.startswith("vllm")] == []


def test_a_function_of_served_code_may_import_later(package):
    name = package(
        model="""
            from vllm.logger import init_logger

            def later():
                from vllm.model_executor.layers.layernorm import LayerNorm
                return LayerNorm
        """
    )
    with bestiary_vllm.serving():
        model = importlib.import_module(f"{name}.model")
    from bestiary.nn import LayerNorm

    assert model.later() is LayerNorm
    finder._finder.withdraw()


def test_install_serves_everybody_until_uninstall():
    assert bestiary_vllm.install()
    try:
        from vllm.model_executor.layers.linear import QKVParallelLinear

        from bestiary.nn import QKVParallelLinear as ours

        assert QKVParallelLinear is ours
    finally:
        bestiary_vllm.uninstall()
    assert not is_found()


def test_real_vllm_is_left_alone(tmp_path, monkeypatch):
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").write_text("real = True")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not bestiary_vllm.install()
    with bestiary_vllm.serving():
        import vllm

        assert vllm.real
    del sys.modules["vllm"]


def test_a_folder_of_that_name_is_no_package(tmp_path, monkeypatch):
    (tmp_path / "vllm").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not finder.real_vllm()


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("from vllm.config import VllmConfg", "its table does not have it; did you mean VllmConfig?"),
        ("from vllm.multimodal import MULTIMODAL_REGISTRY", "images, audio and video are not read yet"),
        ("import vllm.engine.nowhere", "vllm:engine is not served by bestiary-vllm"),
    ],
)
def test_what_is_missing_is_an_error_that_says_why(package, statement, said):
    name = package(model=statement)
    with bestiary_vllm.serving(), pytest.raises(ImportError, match=said.replace("?", r"\?")):
        importlib.import_module(f"{name}.model")


def test_hasattr_answers():
    with bestiary_vllm.serving():
        import vllm.config

        assert hasattr(vllm.config, "VllmConfig")
        assert not hasattr(vllm.config, "NoSuchThing")


def test_every_symbol_of_the_table_can_be_had():
    wrong = {}
    for symbol in table.symbols():
        if symbol.target is not None and symbol.name != "*":
            try:
                modules.load(symbol)
            except (ImportError, AttributeError) as error:
                wrong[symbol.path] = error
    assert wrong == {}


def test_a_file_beside_the_importing_one_stands_for_vllms(package):
    name = package(
        __init__="VLLM_MODEL_FILES = True",
        base="class Base: pass",
        model="from vllm.model_executor.models.base import Base",
    )
    with bestiary_vllm.serving():
        model = importlib.import_module(f"{name}.model")
    base = importlib.import_module(f"{name}.base")
    assert model.Base is base.Base
    assert base.__spec__.name == f"{name}.base"


def test_older_spellings_say_so_once(caplog):
    with bestiary_vllm.serving():
        for _ in range(2):
            from vllm.attention import Attention  # noqa: F401
    assert caplog.text.count("vllm.attention:Attention is an older spelling") == 1
