"""Markdown that grows: what is drawn at the end is what would have been drawn at once, and costs little on the way."""

from __future__ import annotations

import io
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.markdown import Markdown

from bestiary.serve.cli.chat.markdown import MarkdownWriter, settled

from .screen import Screen

TEXT = """\
# A title

Some **bold** text, `code`, and a [link](http://example.org/).

```python
def f(x):

    return x
```

1. one
2. two

| a | b |
|---|---|
| 1 | 2 |

~~~
not closed by ```
```

~~~
The end.
"""


def console(height: int = 24) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=60, height=height, legacy_windows=False)


def drawn(pieces: list[str], height: int = 24, step: float = 1.0) -> tuple[Screen, Console]:
    """The screen after an answer came in these pieces, `step` seconds apart."""
    out, now = console(height), 0.0

    def clock() -> float:
        return now

    writer, text = MarkdownWriter(out, clock), ""
    for piece in pieces:
        text += piece
        now += step
        writer.update(text)
    writer.end()
    screen = Screen()
    screen.feed(out.file.getvalue())  # type: ignore[attr-defined]
    return screen, out


def words(text: str) -> list[str]:
    return [line for line in (" ".join(line.split()) for line in text.splitlines()) if line]


def at_once(text: str) -> list[str]:
    out = console()
    out.print(Markdown(text, hyperlinks=False))
    screen = Screen()
    screen.feed(out.file.getvalue())  # type: ignore[attr-defined]
    return words(screen.text)


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(0, len(TEXT)), max_size=30), step=st.sampled_from([0.0, 0.05, 1.0]))
def test_however_it_comes_it_looks_the_same(cuts: list[int], step: float) -> None:
    places = [0, *sorted(cuts), len(TEXT)]
    screen, _ = drawn([TEXT[a:b] for a, b in pairwise(places)], step=step)
    assert words(screen.text) == at_once(TEXT)
    assert not screen.hidden


def test_blocks_are_an_empty_line_apart() -> None:
    screen, _ = drawn(["one\n\n", "two\n\n", "three"])
    assert screen.text == "one\n\ntwo\n\nthree"


def test_a_growing_block_is_never_higher_than_the_terminal() -> None:
    lines = [f"line {number}  \n" for number in range(40)]
    screen, _ = drawn(lines, height=10)
    assert screen.highest < 10
    assert screen.text.splitlines() == [f"line {number}" for number in range(40)]


def test_only_the_last_block_is_drawn_again() -> None:
    """A long answer of short blocks: what is written for each piece does not grow with the answer."""
    out = console()
    writer, text, written = MarkdownWriter(out, iter(range(10**6)).__next__), "", []
    for number in range(200):
        before = out.file.tell()
        text += f"Paragraph {number}.\n\n"
        writer.update(text)
        written.append(out.file.tell() - before)
    writer.end()
    assert max(written[100:]) <= max(written[:100]) + 8


def test_control_characters_of_a_model_reach_no_terminal() -> None:
    out = console()
    writer = MarkdownWriter(out)
    writer.update("a\x1b]0;title\x07b\x1b[2Jc\x9bd\n\n```\n\x1b[31mred\n```\n")
    writer.end()
    shown = out.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b]" not in shown and "\x1b[2J" not in shown and "\x9b" not in shown and "\x07" not in shown
    assert "abc" not in shown and "a]0;titleb[2Jcd" in shown


def test_a_writer_that_ends_without_text_shows_nothing() -> None:
    out = console()
    MarkdownWriter(out).end()
    assert out.file.getvalue() == ""  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("", 0),
        ("word", 0),
        ("line\n", 0),
        ("line\n\n", 6),
        ("line\n\nmore", 6),
        ("```\na\n\n", 0),
        ("```\na\n\nb\n```\n", 13),
        ("````\n```\n\n````\nx", 15),
        ("~~~\n```\n\n", 0),
        ("```x``` y\n\n", 11),
        ("a\n\n```\nb\n", 3),
    ],
)
def test_what_can_no_longer_change(text: str, place: int) -> None:
    assert settled(text) == place


def test_reasoning_is_dimmed_and_stands_above_the_answer() -> None:
    out = console()
    writer = MarkdownWriter(out)
    for thought in ("Hmm", "Hmm, *well*", "Hmm, *well*\nyes\x1b]0;x"):
        writer.think(thought)
    for text in ("The *an", "The *answer*."):
        writer.update(text)
    writer.end()
    shown = out.file.getvalue()  # type: ignore[attr-defined]
    screen = Screen()
    screen.feed(shown)
    assert screen.text == "Hmm, *well*\nyes]0;x\n\nThe answer."
    assert shown.startswith("\x1b[2mHmm\x1b[0m") and "\x1b[2m, *well*\x1b[0m" in shown
    assert not screen.hidden
