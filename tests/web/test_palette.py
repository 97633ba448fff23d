"""The palette of style.css holds WCAG AA: 4.5 for text, 3 for what is only looked at, in the light and in the dark."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

STYLE = files("bestiary.serve.web").joinpath("static/style.css").read_text("utf-8")
PALETTE = {
    name: {"light": light, "dark": dark}
    for name, light, dark in re.findall(r"--([\w-]+): light-dark\((#[0-9a-f]{6}), (#[0-9a-f]{6})\);", STYLE)
}

GROUNDS = ("page", "side", "raised", "sunken")
TEXTS = [(text, ground) for text in ("text", "quiet") for ground in (*GROUNDS, "accent-soft")]
TEXTS += [("accent", ground) for ground in ("page", "side", "raised", "sunken")]
TEXTS += [("on-accent", "accent"), ("bad", "bad-soft"), ("bad", "page"), ("wait", "wait-soft")]
MARKS = [(mark, ground) for mark in ("accent", "edge", "bad", "wait") for ground in ("page", "side", "raised")]


def luminance(color: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(("pairs", "least"), [(TEXTS, 4.5), (MARKS, 3.0)])
def test_what_is_read_stands_out(theme: str, pairs: list[tuple[str, str]], least: float) -> None:
    found = {(one, ground): contrast(PALETTE[one][theme], PALETTE[ground][theme]) for one, ground in pairs}
    assert {pair: round(ratio, 2) for pair, ratio in found.items() if ratio < least} == {}


def test_the_formula_knows_the_extremes() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.478, abs=0.001)


def test_no_colour_stands_outside_of_the_palette() -> None:
    rules = STYLE[STYLE.index("*, ::before") :]
    assert re.findall(r"#[0-9a-f]{3,8}\b(?![^{]*\{)", rules) == []
    used = set(re.findall(r"var\(--([\w-]+)\)", STYLE))
    assert set(PALETTE) - used == set()
    assert used - set(PALETTE) == {"sans", "serif", "mono", "column", "round"}
