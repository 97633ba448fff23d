"""Names: regular expressions that cannot hang, lists of layers, and a checkpoint's names for a model's layer."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bestiary.api.errors import ConfigError
from bestiary.nn.quant.names import checkpoint_names, matches_any, parts_of
from bestiary.nn.quant.pattern import Pattern
from bestiary.nn.weights.mapper import WeightsMapper

ATOMS = st.sampled_from(["a", "b", ".", r"\.", "[ab]", "[^a]", "[a-c1]", r"\d", r"\w", "(?:ab|b)", "(a|)", "^", "$"])
REPEATS = st.sampled_from(["", "", "*", "+", "?", "{2}", "{1,2}", "{0,}", "+?"])
SEQUENCES = st.lists(st.tuples(ATOMS, REPEATS), max_size=6).map(
    lambda items: "".join(atom + ("" if atom in "^$" else repeat) for atom, repeat in items)
)


@given(st.lists(SEQUENCES, min_size=1, max_size=3).map("|".join), st.text("ab.c1", max_size=8))
@settings(max_examples=300, deadline=None)
def test_patterns_match_what_pythons_do(text, name):
    assert Pattern(text, "field").matches(name) == bool(re.match(text, name))


@pytest.mark.parametrize(("text", "matching", "other"), [
    (".*lm_head", "lm_head", "model.head"),
    (r".*mlp\.gate$", "model.layers.3.mlp.gate", "model.layers.3.mlp.gate_proj"),
    (r"model\.layers\.(0|1|27)\..*_proj", "model.layers.27.mlp.up_proj", "model.layers.2.mlp.up_proj"),
    (".*(q|k|v)_proj", "model.layers.0.self_attn.k_proj", "model.layers.0.self_attn.o_proj"),
])  # fmt: skip
def test_patterns_as_they_occur(text, matching, other):
    pattern = Pattern(text, "field")
    assert pattern.matches(matching) and not pattern.matches(other)


@pytest.mark.parametrize("text", ["(a*)*b", "(a|a)*b", "(a|aa)+b", ".*.*.*.*.*.*.*.*b", "((a?){20}){20}a{20}b"])
def test_no_pattern_hangs(text):
    """Each would take a backtracking engine longer than there is time."""
    assert not Pattern(text, "field").matches("a" * 200)


@pytest.mark.parametrize("text", [
    "(", ")", "a)", "*a", "a**", "[a", r"\b", r"\1", "(?=a)", "(?P<n>a)", "a{70}", "a{2,1}", "a{x}", "a" * 600,
    "((((a{64}){64}){64}){64})", "(" * 100 + ")" * 100, "\\",
])  # fmt: skip
def test_other_patterns_are_refused(text):
    with pytest.raises(ConfigError, match="regular expression is refused") as caught:
        Pattern(text, "quantization_config.ignore")
    assert caught.value.field == "quantization_config.ignore"


def test_entries_are_whole_parts_of_names():
    name = "model.layers.10.mlp.gate_proj"
    assert all(matches_any(name, [entry]) for entry in (name, "gate_proj", "mlp", "layers.10", "model.layers.10.mlp."))
    assert not matches_any(name, ["gate", "mlp.gate", "layers.1", "", "el.layers"])


def test_a_layers_names_in_a_checkpoint():
    bloom = WeightsMapper(orig_to_new_prefix={each: f"transformer.{each}" for each in ("h.", "ln_f.")})
    found = checkpoint_names("transformer.h.0.mlp.up", [bloom])
    assert set(found) == {"transformer.h.0.mlp.up", "h.0.mlp.up"}
    phi = WeightsMapper(orig_to_new_substr={".dense.": ".o_proj."})
    assert checkpoint_names("layers.0.o_proj", [phi]) == ["layers.0.o_proj", "layers.0.dense"]
    alias = WeightsMapper(orig_to_new_prefix={"gpt.": "model."})
    assert checkpoint_names("model.layers.0.o_proj", [alias, phi])[-1] == "gpt.layers.0.dense"
    dropped = WeightsMapper(orig_to_new_prefix={"model.": None})
    assert checkpoint_names("model.x", [dropped]) == ["model.x"]


def test_parts_of_a_fused_layer():
    fusions = {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}
    assert parts_of(object(), "a.qkv_proj", fusions) == ["a.q_proj", "a.k_proj", "a.v_proj"]
    assert parts_of(object(), "down_proj", fusions) == ["down_proj"]
