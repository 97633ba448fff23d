"""`bestiary chat`: turns, commands, Ctrl-C, and a conversation that no longer fits."""

from __future__ import annotations

import io
import signal
from pathlib import Path
from typing import Any

import pytest

from bestiary import LLM, SamplingParams
from bestiary.api.errors import RequestError
from bestiary.serve.cli.chat import Conversation
from bestiary.serve.cli.streaming import TextWriter

from .conftest import CONTEXT, Run


@pytest.fixture(scope="module")
def llm(tiny: Path) -> LLM:
    return LLM(str(tiny), progress=False)


def conversation(llm: LLM, max_tokens: int = 4, system: str | None = None) -> Conversation:
    return Conversation(llm, SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True), system)


def test_turns_build_on_each_other(llm: LLM) -> None:
    chat, out = conversation(llm, system="s"), io.StringIO()
    chat.ask("a", TextWriter(out))
    chat.ask("b", TextWriter(out))
    first, second = chat.messages[2]["content"], chat.messages[4]["content"]
    assert [each["role"] for each in chat.messages] == ["system", "user", "assistant", "user", "assistant"]
    expected = llm.chat(chat.messages[:4], SamplingParams(temperature=0, max_tokens=4, ignore_eos=True), use_tqdm=False)
    assert second == expected[0].outputs[0].text
    assert first in out.getvalue() and second in out.getvalue()
    chat.reset()
    assert chat.messages == [{"role": "system", "content": "s"}]


def test_lines_from_a_pipe(bestiary: Run, tiny: Path) -> None:
    result = bestiary(
        "chat", tiny, "--max-tokens", 3, "--temperature", 0, stdin="hi\n\n/help\n/nope\n/reset\n/exit\nx\n"
    )
    assert result.code == 0
    assert result.err.count("generated") == 1
    assert "no such command: /nope" in result.err and "forgotten" in result.err
    assert result.out.endswith("\n")


def test_the_end_of_input_leaves(bestiary: Run, tiny: Path) -> None:
    assert bestiary("chat", tiny, "--quiet", stdin="").err == ""


class Pressing(io.StringIO):
    """Presses Ctrl-C when it is written to."""

    def write(self, text: str) -> int:
        signal.raise_signal(signal.SIGINT)
        return super().write(text)


def test_ctrl_c_stops_the_answer_and_keeps_what_was_said(llm: LLM) -> None:
    chat, out = conversation(llm, max_tokens=40), Pressing()
    before = signal.getsignal(signal.SIGINT)

    class Once(TextWriter):
        def write(self, text: str) -> None:
            if not out.getvalue():
                super().write(text)

    assert "Ctrl-C" in chat.ask("the lazy dog", Once(out))
    assert signal.getsignal(signal.SIGINT) is before
    assert 0 < len(llm.get_tokenizer().encode(chat.messages[-1]["content"])) < 30
    assert not llm.engine.has_unfinished_requests
    chat.ask("go on", TextWriter(io.StringIO()))
    assert len(chat.messages) == 4


def test_a_second_ctrl_c_is_raised(llm: LLM) -> None:
    class Twice(io.StringIO):
        def write(self, text: str) -> int:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            return super().write(text)

    chat = conversation(llm)
    with pytest.raises(KeyboardInterrupt):
        chat.ask("hello", TextWriter(Twice()))
    assert chat.messages == [] and not llm.engine.has_unfinished_requests


def test_what_no_longer_fits_is_an_error_and_nothing_is_left_out(bestiary: Run, tiny: Path, llm: LLM) -> None:
    chat = conversation(llm)
    chat.ask("x" * 40, TextWriter(io.StringIO()))
    kept = list(chat.messages)
    with pytest.raises(RequestError, match="more than the context length"):
        chat.ask("y" * CONTEXT, TextWriter(io.StringIO()))
    assert chat.messages == kept

    result = bestiary("chat", tiny, "--max-tokens", 4, stdin=f"{'x' * 40}\n{'y' * 40}\n/reset\n{'y' * 40}\n")
    assert result.code == 1  # one message was refused
    assert "CONTEXT_LENGTH_EXCEEDED" in result.err and "/reset forgets" in result.err
    assert result.err.count("generated") == 2


def test_a_model_without_a_template_says_so(bestiary: Run, tiny: Path, tmp_path: Path) -> None:
    directory = tmp_path / "plain"
    directory.mkdir()
    for path in tiny.iterdir():
        if path.name != "tokenizer_config.json":
            (directory / path.name).symlink_to(path)
    result: Any = bestiary("chat", directory, stdin="hi\n")
    assert result.code == 1
    assert "no chat template" in result.err and "bestiary generate" in result.err
