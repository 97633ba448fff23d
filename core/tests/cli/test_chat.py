"""`bestiary chat`: turns, commands, Ctrl-C, and a conversation that no longer fits."""

from __future__ import annotations

import io
import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from bestiary import LLM, SamplingParams
from bestiary.api.errors import RequestError
from bestiary.serve.cli.chat.conversation import Conversation
from bestiary.serve.cli.chat.faces import JsonFace
from bestiary.serve.cli.chat.local import LocalResponder
from bestiary.serve.cli.chat.sampling import SamplingChoice
from bestiary.serve.cli.streaming import TextWriter

from .conftest import CONTEXT, Run


@pytest.fixture(scope="module")
def llm(tiny: Path) -> LLM:
    return LLM(str(tiny), progress=False)


def conversation(llm: LLM, max_tokens: int = 4, system: str | None = None) -> Conversation:
    params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
    return Conversation(LocalResponder(llm), SamplingChoice(params), system)


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


def test_commands_may_have_words_after_them(bestiary: Run, tiny: Path) -> None:
    lines = "/reset please\n/help me\n/usr is full\n/exi\n/exit now\nnever read\n"
    result = bestiary("chat", tiny, "--max-tokens", 3, stdin=lines)
    assert result.code == 0
    assert result.err.count("forgotten") == 1 and result.err.count("these lines") == 1
    assert "no such command: /exi" in result.err
    assert result.err.count("generated") == 1  # what begins with a path is a message


def test_json_is_an_object_a_line_and_nothing_else(bestiary: Run, tiny: Path, llm: LLM) -> None:
    lines = f"hi\n/help\n/exi\n{'x' * CONTEXT}\n/reset\nhi\n"
    result = bestiary("chat", tiny, "--json", "--max-tokens", 3, "--temperature", 0, "--ignore-eos", stdin=lines)
    assert result.code == 1
    first, command, refused, again = map(json.loads, result.out.splitlines())
    chat = conversation(llm, max_tokens=3)
    assert first["answer"] == again["answer"] == chat.ask("hi", None).text
    assert set(first) == {"message", "answer", "finish_reason", "lora_name", "stats"}
    assert (first["message"], first["finish_reason"], first["stats"]["generated_tokens"]) == ("hi", "length", 3)
    assert "/exi" in command["error"]["message"] and set(command) == set(refused) == {"error"}
    assert refused["error"]["code"] == "CONTEXT_LENGTH_EXCEEDED" and "/reset" in refused["error"]["fix"]
    assert "CONTEXT_LENGTH_EXCEEDED" in result.err and "tokens/s" not in result.err


def test_an_answer_that_ctrl_c_ended_is_aborted(llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    answer = replace(conversation(llm).ask("hi", None), finish_reason="abort")
    JsonFace().answered("hi", answer)
    assert json.loads(capsys.readouterr().out)["finish_reason"] == "abort"


def test_a_failure_to_start_is_one_line_of_json_too(bestiary: Run) -> None:
    result = bestiary("chat", "./nowhere", "--json")
    assert result.code == 2 and result.out.count("\n") == 1
    assert result.data["error"]["code"] == "MODEL_NOT_FOUND"


@pytest.mark.parametrize("option", ["--n", "--logprobs"])
def test_what_chat_has_no_use_for_is_no_option(option: str, bestiary: Run) -> None:
    result = bestiary("chat", "./nowhere", option, 2)
    assert result.code == 1 and "No such option" in result.err and option in result.err
    assert f"{option} " not in bestiary("chat", "--help").out


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

    answer = chat.ask("the lazy dog", Once(out))
    assert answer.interrupted and "Ctrl-C" in answer.about()
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
    with pytest.raises(RequestError, match="maximum context length"):
        chat.ask("y" * CONTEXT, TextWriter(io.StringIO()))
    assert chat.messages == kept

    result = bestiary("chat", tiny, "--max-tokens", 4, stdin=f"{'x' * 40}\n{'y' * 40}\n/reset\n{'y' * 40}\n")
    assert result.code == 1  # one message was refused
    assert "CONTEXT_LENGTH_EXCEEDED" in result.err
    (fix,) = [line for line in result.err.splitlines() if "fix:" in line]
    assert "/reset forgets" in fix and "/undo" in fix
    assert result.err.count("generated") == 2


def test_a_model_without_a_template_says_so(bestiary: Run, without_template: Path) -> None:
    result = bestiary("chat", without_template, stdin="hi\n")
    assert result.code == 1
    assert "no chat template" in result.err and "bestiary generate" in result.err
