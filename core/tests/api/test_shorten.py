"""Values in errors: shown as far as 64 characters go, and no further looked at."""

from __future__ import annotations

import pytest

from bestiary.api.errors import shorten


@pytest.mark.parametrize("value", [None, 7, "x", "it's", [], {}, [1, "a", [None]], {"a": [1], 2: {"b": "c"}}, (1, [2])])
def test_short_values_are_shown_as_they_are(value):
    assert shorten(value) == repr(value)


def test_of_large_values_the_beginning_is_shown_and_nothing_else_is_looked_at():
    class Sentinel:
        def __repr__(self):
            pytest.fail("this was looked at")

    assert shorten([*range(100), Sentinel()]) == str([*range(100)])[:63] + "…"
    assert shorten({"a" * 100: 1, "b": Sentinel()}) == "{'" + "a" * 61 + "…"
    endless: list[object] = []
    endless.append(endless)
    assert shorten(endless) == "[" * 63 + "…"
