"""What a JSON text holds is told from the text alone."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bestiary.serve.text.json_marks import count_marks

TEXTS = st.text(alphabet='a:,"\\{}[]é\n', max_size=9)
DOCUMENTS = st.recursive(
    st.none() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


def counted(value):
    """Names, names with objects and lists, commas: by walking."""
    if isinstance(value, dict | list):
        items = [*value.values()] if isinstance(value, dict) else value
        names = len(value) if isinstance(value, dict) else 0
        below = [counted(item) for item in items]
        own = names, names + 1, max(0, len(items) - 1)
        return tuple(map(sum, zip(own, *below, strict=True)))
    return 0, 0, 0


@settings(max_examples=300, deadline=None)
@given(DOCUMENTS, st.booleans())
def test_marks_are_those_outside_of_strings(document, ascii_only):
    assert count_marks(json.dumps(document, ensure_ascii=ascii_only).encode()) == counted(document)


@pytest.mark.parametrize("shift", range(6))
def test_strings_may_lie_across_pieces(shift):
    document = ["x" * shift, *['"\\:,[{' * 50] * 1000, {"a": [":"] * 3000}]
    assert count_marks(json.dumps(document).encode()) == counted(document)
