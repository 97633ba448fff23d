"""The mutator makes every kind of mistake; by hand: none is left unnoticed but those that are explained."""

import inspect
import re
import time
from functools import cache
from importlib import import_module

import pytest

from .automatic import ACCEPTED, FILES, TooLong, defaults, limit, noticed_by, outcomes, reason, subjects
from .mutator import mutants

SOURCE = '''
class Layer(Module, Claims):
    """What it is."""

    names = {"qkv": ["q", "k"]}

    def __init__(self, config: Config) -> None:
        self.first_norm = Norm(config.size, eps=config.eps)
        self.second_norm = Norm(config.size, eps=config.eps)
        self.width = 4 * config.size // 2
        self.kind = getattr(config, "kind", None)

    def forward(self, x, y):
        if self.kind is None and x.bool:
            x, _ = self.first_norm(x, y)
        return x.tanh() + self.second_norm(y) if self.kind == "a" else y["one"] - x["two"]
'''
EXPECTED = [
    'Claims → type("Nothing", (), {})',
    "[\"q\", \"k\"] → ['k', 'q']",
    "\"qkv\" → 'qkv_'",
    "\"one\" → 'two'",
    "4 → 5",
    "4 → 8",
    "y → x",
    "config.size → 8",
    "config.size → config.width",
    "config.eps → 0.5",
    'getattr(config, "kind", None) → config.kind',
    "Norm(config.size, eps=config.eps) → Norm(config.size)",
    "4 * config.size // 2 → (4 * config.size * 2)",
    "4 * config.size → (4 // config.size)",
    "x.tanh() + self.second_norm(y) → (x.tanh() - self.second_norm(y))",
    "self.kind is None → (self.kind is not None)",
    "self.kind is None and x.bool → (self.kind is None or x.bool)",
    "self.kind is None and x.bool → True",
    "self.first_norm → self.second_norm",
    "self.first_norm(x, y) → self.first_norm(y, x)",
    "self.first_norm(x, y) → (x, y)",
    "self.second_norm(y) → y",
    "x.tanh() → x",
    "x, _ = self.first_norm(x, y) → pass",
]


@cache
def of(module):
    return mutants(inspect.getsource(import_module(module)), defaults(module))


def test_each_kind_of_mistake_is_made():
    made = mutants(SOURCE + "\n\nWIDE = config.width\n", {"size": 8, "width": 9, "eps": 0.5})
    changes = [f"{each.old} → {each.new}" for each in made]
    assert [change for change in EXPECTED if change not in changes] == []
    assert len({each.source for each in made}) == len(made)
    assert {each.where for each in made} == {"", "Layer", "Layer.__init__", "Layer.forward"}
    assert not any("What it is" in each.old or "Config" in each.old for each in made)


@pytest.mark.full
@pytest.mark.parametrize("module", FILES)
def test_a_model_file_has_hundreds(module):
    assert len(of(module)) > 400


@pytest.mark.full
def test_what_is_accepted_can_be_made():
    texts = [f"{each.where}: {each.old} → {each.new}" for module in FILES for each in of(module)]
    assert [pattern for pattern in ACCEPTED if not any(re.search(pattern, text) for text in texts)] == []


def test_a_check_that_hangs_is_ended():
    with pytest.raises(TooLong), limit(0.05):
        time.sleep(9)
    time.sleep(0.1)  # nothing rings later


def test_a_mutant_is_noticed_and_an_explained_one_is_not():
    module = "bloom_plugin.bloom"
    tested = subjects(module)
    by_change = {f"{each.old} → {each.new}": each for each in of(module)}
    found = {
        change: noticed_by(module, by_change[change], tested) for change in ("\"gelu_tanh\" → 'gelu_tanh_'", "-1 → 1")
    }
    assert list(found.values()) == ["logits", None]
    assert reason(by_change["-1 → 1"])
    type(tested[0]).teardown_class()


@pytest.mark.full
@pytest.mark.parametrize("module", FILES)
def test_every_mutant_is_noticed_or_explained(module):
    assert [str(mutant) for mutant, check in outcomes(module) if check is None and reason(mutant) is None] == []
