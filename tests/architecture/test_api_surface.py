"""Plugins written for this API major keep working: nothing they may use is gone or asks for more."""

import copy

import pytest

from .api_surface import broken, recorded, surface


def test_nothing_a_plugin_may_rely_on_has_changed():
    assert list(broken(recorded(), surface())) == []


def test_the_record_is_complete():
    assert recorded() == surface(), "python tests/architecture/api_surface.py adds what is new"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda s: s.pop("bestiary.nn.FusedMoE"), "bestiary.nn.FusedMoE is gone"),
        (lambda s: s["bestiary.nn.RMSNorm"]["parameters"].pop("eps"), "no longer takes eps"),
        (lambda s: s["bestiary.nn.get_rope"]["parameters"].update(base=True), "requires base"),
        (lambda s: s["bestiary.nn.Attention"]["methods"].pop("forward"), "Attention.forward is gone"),
        (lambda s: s["bestiary.nn.Attention"]["methods"]["forward"].update(mask=True), "requires mask"),
        (lambda s: s["bestiary.api.SupportsPP"]["owed"].append("stages"), "asks classes for stages"),
    ],
)
def test_a_break_is_noticed(change, complaint):
    changed = copy.deepcopy(surface())
    change(changed)
    assert any(complaint in line for line in broken(recorded(), changed))
    assert list(broken(changed, changed)) == []
