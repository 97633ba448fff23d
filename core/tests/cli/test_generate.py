"""`bestiary generate` says what `LLM` says, on the right stream."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from bestiary import LLM, SamplingParams
from bestiary.serve.cli.streaming import TextWriter

from .conftest import CONTEXT, Run

PROMPT = "the quick brown"


@pytest.fixture(scope="module")
def llm(tiny: Path) -> LLM:
    return LLM(str(tiny), progress=False)


def test_the_text_is_that_of_the_python_interface(bestiary: Run, tiny: Path, llm: LLM) -> None:
    expected = llm.generate([PROMPT], SamplingParams(temperature=0, max_tokens=12), use_tqdm=False)[0].outputs[0]
    result = bestiary("generate", tiny, PROMPT, "--max-tokens", 12)
    assert result.code == 0
    assert result.out.rstrip("\n") == expected.text.rstrip("\n")
    assert "12 generated" in result.err and "tokens/s" in result.err
    assert "loading weights" in result.err
    assert "--chat" in result.err  # this model has a template, and was not asked through it


def test_an_answer_has_the_form_that_is_asked_for(bestiary: Run, tiny: Path, tmp_path: Path) -> None:
    schema, grammar = tmp_path / "schema.json", tmp_path / "grammar.lark"
    schema.write_text('{"enum": ["fox", "dog"]}')
    grammar.write_text('start: ("a" | "b") "c"')
    for arguments, expected in (
        (["--json-schema", schema], {'"fox"', '"dog"'}),
        (["--regex", "[xy]z"], {"xz", "yz"}),
        (["--grammar", grammar], {"ac", "bc"}),
        (["--choice", "one", "--choice", "two"], {"one", "two"}),
    ):
        result = bestiary("generate", tiny, PROMPT, "--quiet", *arguments)
        assert (result.code, result.err) == (0, "")
        assert result.out.rstrip("\n") in expected


def test_a_form_that_is_none_or_several_is_refused(bestiary: Run, tiny: Path, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "objekt"}')
    assert "BAD_SCHEMA" in bestiary("generate", tiny, PROMPT, "--json-schema", schema).err
    assert (
        "one form: --json-object or --regex" in bestiary("generate", tiny, PROMPT, "--json-object", "--regex", "a").err
    )
    schema.write_bytes(b"\xff")
    assert "is not UTF-8" in bestiary("generate", tiny, PROMPT, "--json-schema", schema).err


def test_quiet_says_nothing(bestiary: Run, tiny: Path) -> None:
    result = bestiary("generate", tiny, PROMPT, "--max-tokens", 4, "--quiet")
    assert (result.code, result.err) == (0, "")
    assert result.out


@pytest.mark.parametrize("arguments", [[], ["-"], ["--prompt", "-"]])
def test_the_prompt_may_come_from_standard_input(arguments: list[str], bestiary: Run, tiny: Path) -> None:
    result = bestiary("generate", tiny, *arguments, "--json", "--max-tokens", 3, stdin=PROMPT)
    assert result.data["prompt"] == PROMPT


def test_json_is_the_request_output(bestiary: Run, tiny: Path, llm: LLM) -> None:
    result = bestiary("generate", tiny, PROMPT, "--json", "--max-tokens", 5, "--logprobs", 2, "--n", 2, "--seed", 3,
                      "--temperature", 0.9)  # fmt: skip
    params = SamplingParams(temperature=0.9, max_tokens=5, logprobs=2, n=2, seed=3)
    expected = llm.generate([PROMPT], params, use_tqdm=False)[0]
    found = result.data
    assert [each["token_ids"] for each in found["outputs"]] == [each.token_ids for each in expected.outputs]
    assert [each["text"] for each in found["outputs"]] == [each.text for each in expected.outputs]
    assert found["prompt_token_ids"] == expected.prompt_token_ids
    assert found["finished"] is True
    first = next(iter(found["outputs"][0]["logprobs"][0].values()))
    assert set(first) == {"logprob", "rank", "decoded_token"}
    assert found["stats"]["generated_tokens"] == 10
    assert found["stats"]["time_to_first_token_s"] > 0


def test_chat_uses_the_template(bestiary: Run, tiny: Path, llm: LLM) -> None:
    result = bestiary("generate", tiny, "hello", "--chat", "--system", "be brief", "--json", "--max-tokens", 3)
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
    assert result.data["prompt_token_ids"] == llm.chat_ids(messages)
    assert "--chat" not in result.err


def test_a_template_of_ones_own(bestiary: Run, tiny: Path, tmp_path: Path, llm: LLM) -> None:
    path = tmp_path / "own.jinja"
    path.write_text("{{ messages[0].content }} jumps")
    result = bestiary("generate", tiny, "fox", "--chat", "--chat-template", path, "--json", "--max-tokens", 3)
    assert result.data["prompt_token_ids"] == llm.get_tokenizer().encode("fox jumps", add_special_tokens=False)


def test_the_default_limit_gives_way_to_the_context_and_a_given_one_does_not(bestiary: Run, tiny: Path) -> None:
    result = bestiary("generate", tiny, PROMPT, "--json", "--ignore-eos")
    request = result.data
    assert len(request["prompt_token_ids"]) + len(request["outputs"][0]["token_ids"]) == CONTEXT
    refused = bestiary("generate", tiny, PROMPT, "--max-tokens", CONTEXT)
    assert refused.code == 1 and "CONTEXT_LENGTH_EXCEEDED" in refused.err


def test_several_answers_are_numbered(bestiary: Run, tiny: Path) -> None:
    result = bestiary("generate", tiny, PROMPT, "--n", 2, "--temperature", 1, "--max-tokens", 2, "-q")
    assert result.code == 0
    assert result.out.startswith("[0] ") and "\n[1] " in result.out


def test_greedy_answers_are_said_to_be_alike(bestiary: Run, tiny: Path) -> None:
    result = bestiary("generate", tiny, PROMPT, "--n", 2, "--max-tokens", 2)
    assert result.code == 0
    (line,) = [line for line in result.err.splitlines() if "alike" in line]
    assert "--temperature 0" in line
    assert "alike" not in bestiary("generate", tiny, PROMPT, "--n", 2, "--max-tokens", 2, "--temperature", 1).err


@pytest.mark.parametrize("arguments", [[""], ["--chat", ""], ["-p", ""], ["-"], []], ids=" ".join)
def test_an_empty_prompt_is_refused_before_the_model_is_looked_for(arguments: list[str], bestiary: Run) -> None:
    result = bestiary("generate", "./nowhere", *arguments, "--json")
    assert result.code == 1
    assert result.data["error"]["code"] == "EMPTY_PROMPT" and "bestiary generate MODEL" in result.data["error"]["fix"]


def test_log_probabilities_need_json(bestiary: Run) -> None:
    result = bestiary("generate", "./nowhere", PROMPT, "--logprobs", 2)
    assert result.code == 1 and "--logprobs needs --json" in result.err


def test_chat_without_a_template_says_what_to_type(bestiary: Run, without_template: Path) -> None:
    result = bestiary("generate", without_template, PROMPT, "--chat")
    assert result.code == 1 and "no chat template" in result.err
    assert "fix:   --chat-template FILE, or --raw" in result.err


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_input_that_is_no_text_is_named_by_byte_and_offset(command: str, bestiary: Run, tiny: Path) -> None:
    head = b"fox\r\n" if command == "chat" else b""
    result = bestiary(command, tiny, "--max-tokens", 2, stdin=head + b"caf\xe9 au lait")
    assert result.code == 1
    assert "standard input is not UTF-8" in result.err and "iconv -f latin1 -t utf-8" in result.err
    assert f"byte 0xe9 at offset {len(head) + 3}" in result.err
    assert result.err.count("generated") == (command == "chat")  # the line before was answered


def test_an_argument_that_is_no_text_is_named_too(bestiary: Run) -> None:
    result = bestiary("generate", "./nowhere", "caf\udce9")
    assert result.code == 1 and "byte 0xe9 at offset 3" in result.err


@pytest.mark.parametrize("command", [["generate", "--chat", "--prompt", "x"], ["chat"]], ids=lambda each: each[0])
def test_a_template_that_is_no_text_is_a_usage_error(command: list[str], bestiary: Run, tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_bytes(b"\xff")
    result = bestiary(*command, "./nowhere", "--chat-template", tmp_path / "t.jinja")
    assert result.code == 1 and "t.jinja is not UTF-8" in result.err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_model_cannot_move_the_cursor() -> None:
    terminal, pipe = Terminal(), io.StringIO()
    for stream in (terminal, pipe):
        writer = TextWriter(stream)
        for text in ("a", "a\x1b[2J", "a\x1b[2J\tö\n\r🙂"):
            writer.update(text)
        writer.end()
    assert terminal.getvalue() == "a[2J\tö\n🙂\n"
    assert pipe.getvalue() == "a\x1b[2J\tö\n\r🙂\n"
