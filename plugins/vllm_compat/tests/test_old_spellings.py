"""Every name that newer versions of vLLM spell otherwise is still served, and says so once."""

import importlib

import pytest

import bestiary_vllm
from bestiary_vllm import table

OLD = [symbol for symbol in table.symbols() if symbol.now is not None]
NOW = [symbol for symbol in OLD if symbol.now.startswith("vllm.")]


@pytest.mark.parametrize("symbol", OLD, ids=lambda symbol: symbol.path)
def test_an_older_spelling_says_what_it_is_now(symbol, caplog):
    with bestiary_vllm.serving():
        module = importlib.import_module(symbol.module)
        first, second = getattr(module, symbol.name), getattr(module, symbol.name)
    assert first is second
    assert caplog.text.count(f"{symbol.path} is an older spelling: it is {symbol.now} now") == 1


@pytest.mark.parametrize("symbol", NOW, ids=lambda symbol: symbol.path)
def test_what_it_is_now_is_served_too(symbol):
    module, _, name = symbol.now.partition(":")
    found = table.find(module, name)
    assert found is not None and found.target is not None and found.now is None
