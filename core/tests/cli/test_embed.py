"""`bestiary embed` gives the vectors of `LLM.embed`, a line each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bestiary import LLM, PoolingParams

from .conftest import CONTEXT, Run

TEXTS = ["the quick brown", "fox"]


@pytest.fixture(scope="module")
def expected(tiny: Path) -> list[list[float]]:
    with LLM(str(tiny), progress=False, runner="pooling") as llm:
        return [each.outputs.embedding for each in llm.embed(TEXTS, use_tqdm=False)]


def test_a_line_of_json_for_each_text(bestiary: Run, tiny: Path, expected: list[list[float]]) -> None:
    result = bestiary("embed", tiny, *TEXTS, "--json")
    assert result.code == 0
    found = [json.loads(line) for line in result.out.splitlines()]
    assert [(each["index"], each["text"], each["finish_reason"]) for each in found] == [
        (0, TEXTS[0], "stop"), (1, TEXTS[1], "stop"),
    ]  # fmt: skip
    assert [each["embedding"] for each in found] == [pytest.approx(each, abs=1e-6) for each in expected]
    tokens = sum(each["tokens"] for each in found)
    assert f"2 texts, {tokens} tokens, vectors of {len(expected[0])} numbers" in result.err


def test_lines_of_standard_input_are_texts(bestiary: Run, tiny: Path, expected: list[list[float]]) -> None:
    result = bestiary("embed", tiny, "--quiet", stdin="\n".join(TEXTS))
    assert (result.code, result.err) == (0, "")
    found = [[float(number) for number in line.split(" ")] for line in result.out.splitlines()]
    assert found == [pytest.approx(each, abs=1e-5) for each in expected]


def test_what_the_options_say_is_done(bestiary: Run, tiny: Path, caplog: pytest.LogCaptureFixture) -> None:
    result = bestiary("embed", tiny, TEXTS[0], "-q", "--dimensions", 3, "--no-normalize", "--pooling-type", "MEAN")
    assert "no prefix cache" in caplog.text
    with LLM(str(tiny), progress=False, runner="pooling", pooling_type="MEAN") as llm:
        params = PoolingParams(dimensions=3, normalize=False)
        (output,) = llm.embed(TEXTS[0], params, use_tqdm=False)
    assert [float(number) for number in result.out.split()] == pytest.approx(output.outputs.embedding, abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "stdin", "words"),
    [
        ([], "", "EMPTY_PROMPT"),
        ([], "one\n\nthree\n", "EMPTY_PROMPT"),
        ([""], "", "EMPTY_PROMPT"),
        (["--dimensions", 0, "x"], "", "0 is not in the range"),
        (["--dimensions", 4096, "x"], "", "at most"),
        (["--pooling-type", "ALL", "x"], "", "LAST"),
        (["fox", "quick " * CONTEXT], "", "prompt 1: the prompt has"),
    ],
)
def test_what_cannot_be_embedded_is_refused(
    arguments: list[object], stdin: str, words: str, bestiary: Run, tiny: Path
) -> None:
    result = bestiary("embed", tiny, *arguments, stdin=stdin)
    assert (result.code, result.out) == (1, "")
    assert words in result.err


def test_errors_are_json_too(bestiary: Run, tiny: Path) -> None:
    result = bestiary("embed", tiny, "x", "--json", "--dimensions", 4096)
    assert len(result.out.splitlines()) == 1
    assert result.data["error"]["field"] == "dimensions"
