"""Aliases: data that leads to another architecture's class, and every way in which it can lead nowhere."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from bestiary.api.alias import Alias
from bestiary.api.errors import (
    BestiaryError,
    BrokenPlugin,
    DuplicateArchitecture,
    IncompatiblePlugin,
    UnknownArchitecture,
    UsageError,
)
from bestiary.api.registry import Registry
from bestiary.api.rows import PluginRow
from bestiary.testing.fake_site import Site

ALIAS = "from bestiary.api import Alias\nALIAS = Alias(architecture={of!r}{more})\n"


def alias(site: Site, name: str, of: str, more: str = "", **options: Any) -> None:
    """A distribution `name` that says its `name.title()` is an alias of `of`."""
    source = options.pop("source", ALIAS.format(of=of, more=more))
    entries = {options.pop("architecture", name.title()): f"{name}:ALIAS"}
    site.add(name, aliases=entries, source=source, **options)


def registry_of(site: Site) -> Registry:
    return Registry([str(site.root)], cache_directory=site.root / "cache", probe_timeout_s=20)


def row(registry: Registry, architecture: str, mode: Any = "run", **more: Any) -> PluginRow:
    (found,) = [each for each in registry.list(mode, **more) if each.architecture == architecture]
    return found


def test_an_alias_gives_the_other_ones_class_and_its_own_data(site: Site) -> None:
    site.model("base", "Base")
    alias(site, "garnet", "Base", ", config={'hidden_size': 'd_model'}")
    registry = registry_of(site)
    assert registry.architectures() == ["Base", "Garnet"]
    found = registry.find(["Garnet"])
    assert (found.architecture, found.model_class.__name__) == ("Garnet", "Base")
    assert found.alias is not None and found.alias.config == {"hidden_size": "d_model"}
    assert (found.entry.origin, found.target.origin) == ("dist garnet 1.0", "dist base 1.0")
    assert registry.find(["Base"]).alias is None
    assert registry.resolve(["Garnet"]) is registry.resolve(["Base"])


def test_listing_imports_nothing_and_an_inspection_tells_what_it_is_an_alias_of(site: Site) -> None:
    site.model("base", "Base")
    alias(site, "garnet", "Base")
    registry = registry_of(site)
    before = row(registry, "Garnet", "cached")
    assert (before.kind, before.status, before.alias_of, before.info) == ("alias", "ok", None, None)
    assert registry.inspect("Garnet").architecture == "Garnet"
    after = row(registry, "Garnet")
    assert (after.alias_of, after.target) == ("Base", "base")
    assert after.info is not None and after.info.categories == ("text_generation",)
    assert after.as_dict()["kind"] == "alias" and row(registry, "Base").kind == "model"
    assert row(registry, "Garnet", "cached") == after, "the answer is kept"
    assert "garnet" not in sys.modules and "base" not in sys.modules


def test_what_it_is_an_alias_of_must_be_installed(site: Site) -> None:
    alias(site, "garnet", "LlamaForCausalLM")
    registry = registry_of(site)
    for attempt in (registry.resolve, lambda names: registry.inspect(names[0])):
        with pytest.raises(UnknownArchitecture) as raised:
            attempt(["Garnet", "Other"] if attempt == registry.resolve else ["Garnet"])
        expected = (
            "Garnet (from dist garnet 1.0) is an alias of LlamaForCausalLM, which no installed package implements"
        )
        assert raised.value.message == expected
        assert raised.value.fix == "pip install bestiary-llama"
    found = row(registry, "Garnet")
    assert (found.status, found.details) == ("broken", ("pip install bestiary-llama",))
    assert "alias of LlamaForCausalLM" in found.cause


@pytest.mark.parametrize(
    ("of", "says"),
    [("Garnet", "is an alias of itself"), ("Opal", "is an alias of Opal, an alias as well (from dist opal 1.0)")],
)
def test_an_alias_of_an_alias_is_refused(site: Site, of: str, says: str) -> None:
    alias(site, "garnet", of)
    alias(site, "opal", "Garnet")
    registry = registry_of(site)
    with pytest.raises(BrokenPlugin) as raised:
        registry.resolve(["Garnet"])
    assert (raised.value.error_code, raised.value.exit_code) == ("BAD_ALIAS", 3)
    assert raised.value.message == f"Garnet (from dist garnet 1.0) {says}"
    assert row(registry, "Garnet").status == row(registry, "Opal").status == "broken"


def test_an_alias_and_a_model_of_one_name_are_two_claims(site: Site) -> None:
    site.model("base", "Base")
    site.model("rival", "Garnet")
    alias(site, "garnet", "Base")
    registry = registry_of(site)
    with pytest.raises(DuplicateArchitecture) as raised:
        registry.resolve(["Garnet"])
    assert raised.value.details[0].endswith("garnet:ALIAS (an alias)")
    assert registry.resolve(["Garnet"], plugins=["Garnet=garnet"]).__name__ == "Base"
    assert registry.resolve(["Garnet"], plugins=["Garnet=rival"]).__name__ == "Garnet"
    rows = {each.distribution: each for each in registry.list("never", plugins=["Garnet=rival"])}
    assert (rows["rival"].status, rows["garnet"].status) == ("ok", "duplicate")


def test_an_alias_that_takes_over_the_name_it_is_an_alias_of_is_one_of_itself(site: Site) -> None:
    site.model("base", "Base")
    alias(site, "garnet", "Base", architecture="Base")
    with pytest.raises(BrokenPlugin, match="is an alias of itself"):
        registry_of(site).resolve(["Base"], plugins=["Base=garnet"])


def test_one_distribution_cannot_claim_a_name_twice(site: Site) -> None:
    site.add("garnet", models={"Garnet": "garnet:G"}, aliases={"Garnet": "garnet:ALIAS"})
    registry = registry_of(site)
    with pytest.raises(BrokenPlugin, match=r"garnet 1\.0 declares Garnet both as a model and as an alias"):
        registry.resolve(["Garnet"])
    assert {each.status for each in registry.list()} == {"broken"}


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("ALIAS = 3", "garnet:ALIAS is no Alias (from dist garnet 1.0)"),
        ("import nothing_x", "ImportError: No module named 'nothing_x' (from dist garnet 1.0)"),
        (ALIAS.format(of="Base", more=", of=3"), "got an unexpected keyword argument 'of' (from dist garnet 1.0)"),
        (ALIAS.format(of="a b", more=""), "an Alias of 'a b' is refused: 1 problem(s) (from dist garnet 1.0)"),
    ],
)
def test_what_is_no_alias_is_an_error_and_a_row(site: Site, source: str, says: str) -> None:
    site.model("base", "Base")
    alias(site, "garnet", "Base", source=source)
    registry = registry_of(site)
    assert says in row(registry, "Garnet").cause
    with pytest.raises(BrokenPlugin) as raised:
        registry.resolve(["Garnet"])
    assert says in raised.value.message
    with pytest.raises(BestiaryError):
        registry.inspect("Garnet")
    assert (row(registry, "Garnet").status, row(registry, "Base").status) == ("broken", "ok")


def test_an_alias_for_another_core_is_refused_without_an_import(site: Site) -> None:
    site.model("base", "Base")
    alias(site, "garnet", "Base", api="2.0")
    registry = registry_of(site)
    with pytest.raises(IncompatiblePlugin):
        registry.resolve(["Garnet"])
    assert row(registry, "Garnet").status == "incompatible" and "garnet" not in sys.modules


def test_an_alias_by_hand(site: Site) -> None:
    site.model("base", "Base")
    registry = registry_of(site)
    registry.register_alias("Mine", Alias(architecture="Base"))
    assert registry.resolve(["Mine"]).__name__ == "Base"
    assert registry.inspect("Mine").architecture == "Mine"
    assert (row(registry, "Mine").alias_of, row(registry, "Mine").distribution) == ("Base", "(by hand)")
    registry.register_alias("Mine", Alias(architecture="Gone"))
    with pytest.raises(UnknownArchitecture, match="an alias of Gone"):
        registry.resolve(["Mine"])
    for name, given in (("Mine", "Base"), ("", Alias(architecture="Base"))):
        with pytest.raises(UsageError):
            registry.register_alias(name, given)  # type: ignore[arg-type]


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "no_name": ({"architecture": ""}, "architecture: must be the name of a class"),
    "type": ({"model_type": 3}, "model_type: must be a name or None"),
    "list": ({"config": ["d_model"]}, "config: must be a mapping, not list"),
    "source": ({"config": {"hidden_size": 64}}, "config['hidden_size']: must be the name of a field in config.json"),
    "path": ({"config": {"hidden_size": "a..b"}}, "config['hidden_size']: must be the name of a field"),
    "field": ({"constants": {"a.b": 1}}, "constants: 'a.b' is no name of a field"),
    "own": ({"constants": {"model_type": "x"}}, "constants: model_type cannot be set here; say model_type= instead"),
    "class": ({"constants": {"act": object}}, "constants['act']: must be what JSON can hold, not type"),
    "twice": ({"config": {"a": "b"}, "constants": {"a": 1}}, "constants['a']: config speaks of this field as well"),
    "kind": ({"weights": {"prefixes": {}}}, "weights: 'prefixes' is none of regex, substr, prefix, suffix"),
    "table": ({"weights": {"prefix": [("a", "b")]}}, "weights['prefix']: must be a mapping, not list"),
    "name": ({"weights": {"prefix": {"a": 3}}}, "weights['prefix']['a']: must lead from a name to a name or None"),
    "regex": ({"weights": {"regex": {"(": "a"}}}, "weights['regex']['(']: missing )"),
    "group": ({"weights": {"regex": {"a": r"\1"}}}, "weights['regex']['a']: invalid group reference 1"),
    "empty": ({"weights": {"substr": {"": "a"}}}, "weights['substr']['']: an empty name is found everywhere"),
    "covered": (
        {"weights": {"prefix": {"h.": "model.", "h.0.": "first."}}},
        "weights['prefix']['h.0.']: never applies, since 'h.' takes its names before; put the longer one first",
    ),
    "dropped": ({"weights": {"suffix": {".g": None, "w.g": "x"}}}, "weights['suffix']['w.g']: never applies"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_in_the_data_is_named(case: str) -> None:
    fields, says = MISTAKES[case]
    with pytest.raises(BrokenPlugin) as raised:
        Alias(**{"architecture": "Base", **fields})
    assert raised.value.error_code == "BAD_ALIAS"
    assert len(raised.value.details) == 1 and raised.value.details[0].startswith(says)


def test_all_mistakes_are_named_at_once_and_good_tables_pass() -> None:
    with pytest.raises(BrokenPlugin) as raised:
        Alias(architecture="Base", config={"a": 1, "b": ""}, weights={"x": {}, "regex": {"(": None}})  # type: ignore[dict-item]
    assert len(raised.value.details) == 4
    Alias(
        architecture="Base",
        weights={"prefix": {"h.0.": "a.", "h.": "b.", "": "c."}, "substr": {".attn.": ".self_attn.", "attn": "x"}},
        defaults={"bias": None},
        config={"bias": "qkv.bias"},
    )
