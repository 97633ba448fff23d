"""The tables ten times over, and ten times as many variants that nobody wrote down."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .grammar import SCHEMAS, json_format
from .request_rows import FIELDS
from .row import ANSWER, CHAT, HI, TEXT, TOKENS, Row, encoded
from .templates import BOMBS, INJECTIONS
from .test_table import GROUPS

pytestmark = pytest.mark.full
VARIANTS, BATCH, TIMES = 14_000, 100, 10
NAMES = sorted({name for table in FIELDS.values() for name in table})
ENDPOINTS = {TEXT: {"prompt": "Hi"}, CHAT: {"messages": HI}, ANSWER: {"input": "Hi"}, TOKENS: {"prompt": "Hi"}}
LEAVES = (
    st.none() | st.booleans() | st.integers() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=50)
    | st.sampled_from([0, -1, 2**31, 2**63, 1e308, "", "\u0000", "\u202e", [], {}, "x" * 5000])
)  # fmt: skip
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
)
KEYWORDS = sorted({keyword for schema in SCHEMAS for keyword in schema} | {"properties", "items", "enum", "const"})
SCHEMA = st.recursive(
    st.dictionaries(st.sampled_from(KEYWORDS), LEAVES, max_size=3),
    lambda inner: st.dictionaries(st.sampled_from(KEYWORDS), inner | st.lists(inner, max_size=3) | LEAVES, max_size=4),
    max_leaves=8,
)
PIECES = st.sampled_from([*INJECTIONS, *(bomb for bomb in BOMBS if len(bomb) < 200), "{{", "}}", "{% if", "%}", "x"])


def _body(path: str, fields: dict[str, object]) -> Row:
    small = {} if path in (ANSWER, TOKENS) else {"max_tokens": 2}
    return Row(id="R", path=path, body=encoded(ENDPOINTS[path] | small | fields), outcomes=(), seconds=3)


def _damaged(body: bytes, at: int, piece: bytes) -> Row:
    place = at % len(body)
    return Row(id="R14", body=body[:place] + piece + body[place + len(piece) // 2 :], outcomes=())


names = st.sampled_from(NAMES) | st.text(max_size=9)
fields = st.builds(_body, st.sampled_from(sorted(ENDPOINTS)), st.dictionaries(names, VALUES, min_size=1, max_size=3))
messages = st.builds(lambda value: _body(CHAT, {"messages": value}), st.lists(VALUES, max_size=4) | VALUES)
tools = st.builds(lambda value: _body(CHAT, {"tools": value}), st.lists(VALUES, max_size=4) | VALUES)
schemas = st.builds(lambda schema: _body(CHAT, json_format(schema)), SCHEMA)
characters = st.text(alphabet="ab(){}[]|*+?.\\^$,19-", max_size=30)
regexes = st.builds(lambda regex: _body(TEXT, {"guided_regex": regex}), characters)
parts = st.lists(PIECES, min_size=1, max_size=3)
templates = st.builds(lambda found: _body(CHAT, {"chat_template": "".join(found)}), parts)
whole = [encoded({"prompt": prompt, "max_tokens": 2}) for prompt in ("Hi", [5, 6])]
damaged = st.builds(_damaged, st.sampled_from(whole), st.integers(0, 10**6), st.binary(min_size=1, max_size=8))
cheap = fields | messages | tools | regexes | damaged
rows = st.lists(cheap, min_size=BATCH - 5, max_size=BATCH - 5)


@pytest.mark.parametrize("name", GROUPS)
def test_the_tables_again(stage, run, case, name):
    for _ in range(TIMES):
        report = run(stage.run(GROUPS[name].rows()))
        case(name, len(report.verdicts), **report.figures)
        assert report.wrong == [], "\n".join(report.wrong)


def test_variants(stage, run, case):
    """Whatever is sent is answered, or refused as the request's own fault."""

    @settings(
        max_examples=VARIANTS // BATCH, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(rows, st.lists(schemas | templates, min_size=5, max_size=5))
    def together(many, costly):
        report = run(stage.run([*many, *costly]))
        case("variants", len(report.verdicts), **report.figures)
        assert report.wrong == [], "\n".join(report.wrong)

    together()
