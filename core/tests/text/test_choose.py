"""The parsers of a model are those that its chat template writes for; names overrule, and what was chosen is said."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from bestiary.api.errors import UsageError
from bestiary.api.hook_manager import HookManager
from bestiary.api.hooks import TextDelta
from bestiary.api.text_formats import JsonCall, ToolFormat
from bestiary.serve.text.chat_template import render_chat
from bestiary.serve.text.parsers.answer import parse_text
from bestiary.serve.text.parsers.choose import choose_formats
from bestiary.serve.text.parsers.families import HERMES, REASONING_FORMATS, THINK, TOOL_FORMATS
from bestiary.serve.text.parsers.formats import AnswerFormats, begins_inside
from bestiary.serve.text.tools import Tool

from .templates import TEMPLATES
from .tool_templates import CASES


@pytest.fixture(scope="module")
def hooks() -> HookManager:
    return HookManager().load()


@pytest.fixture(autouse=True)
def said(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.WARNING):
        yield


def chosen(hooks: HookManager, template: str | None, **names: str) -> AnswerFormats:
    def render(messages: Any, **variables: Any) -> str:
        return render_chat(template or "", messages, bos_token="<s>", eos_token="</s>", **variables)

    return choose_formats(hooks, template, render, **names)


@pytest.mark.parametrize("name", CASES)
def test_a_template_says_how_its_model_writes(hooks: HookManager, name: str, caplog: pytest.LogCaptureFixture) -> None:
    case = CASES[name]
    formats = chosen(hooks, case.template)
    read, thought = caplog.messages
    assert read.startswith(f"tool calls are read as {case.tools}: " if case.tools else "tool calls stay text: ")
    assert thought.startswith(f"thoughts are read as {case.reasoning}: " if case.reasoning else "thoughts stay text: ")
    assert (formats.arguments, formats.shows_tools) == (case.arguments, case.shows_tools)
    if case.tools in TOOL_FORMATS:
        assert formats.tools == formats.forced == TOOL_FORMATS[str(case.tools)]
    assert formats.reasoning == (REASONING_FORMATS[case.reasoning] if case.reasoning else None)


def test_a_format_that_nobody_knew_reads_calls(hooks: HookManager) -> None:
    formats = chosen(hooks, CASES["a family of its own"].template)
    call = ToolFormat(
        opening=("<call>",), closing="</call>", brackets=True, call=JsonCall(name="fn", arguments=("with",))
    )
    assert formats.tools == call
    found = parse_text(formats.parser("", [Tool("f")]), 'Ok <call>[{"fn": "f", "with": {"a": 1}}]</call>')
    assert [(each.name, each.arguments) for each in found.tool_calls] == [("f", '{"a": 1}')]


@pytest.mark.parametrize("name", ["chatml", "llama2", "llama3", "gemma", "phi", "command_r", "zephyr"])
def test_templates_without_tools(hooks: HookManager, name: str) -> None:
    formats = chosen(hooks, TEMPLATES[name])
    assert (formats.tools, formats.forced, formats.shows_tools) == (None, HERMES, False)
    text = '<tool_call>{"name": "f"}</tool_call>'
    assert parse_text(formats.parser("", [Tool("f")]), text) == TextDelta(text)
    assert parse_text(formats.parser("", [Tool("f")], forced=True), text).tool_calls[0].name == "f"


def test_a_model_without_a_template(hooks: HookManager) -> None:
    formats = chosen(hooks, None)
    assert (formats.tools, formats.reasoning) == (None, None)


def test_names_overrule(hooks: HookManager, caplog: pytest.LogCaptureFixture) -> None:
    formats = chosen(hooks, CASES["hermes"].template, tool_call_parser="mistral", reasoning_parser="deepseek_r1")
    assert formats.tools == TOOL_FORMATS["mistral"]
    assert caplog.messages[0] == "tool calls are read as mistral: --tool-call-parser mistral"
    assert parse_text(formats.parser("no mark"), "hm</think>x") == TextDelta("x", "hm")
    formats = chosen(hooks, CASES["hermes, thinking"].template, tool_call_parser="none", reasoning_parser="none")
    assert (formats.tools, formats.reasoning) == (None, None)
    with pytest.raises(UsageError, match="mistrol") as caught:
        chosen(hooks, None, tool_call_parser="mistrol")
    assert caught.value.fix == "did you mean 'mistral'?"


@pytest.mark.parametrize(
    ("prompt", "continued", "inside"),
    [
        ("…assistant\n<think>\n", "", True),
        ("…assistant\n<think>", "", True),
        ("…assistant\n<think>\n\n</think>\n\n", "", False),
        ("<think> was asked\nassistant\n", "", False),
        ("…assistant\n<think>\nLet me", "<think>\nLet me", True),
        ("…assistant\n<think>a</think>Yes", "<think>a</think>Yes", False),
        ("", "", False),
    ],
)
def test_whether_the_prompt_opened_the_reasoning(prompt: str, continued: str, inside: bool) -> None:
    assert begins_inside(THINK, prompt, continued) is inside


def test_marks_are_all_that_must_stay_visible() -> None:
    formats = AnswerFormats(TOOL_FORMATS["kimi_k2"], REASONING_FORMATS["cohere"])
    assert set(formats.marks()) == {
        "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", "<|tool_call_begin|>functions.",
        "<|tool_call_argument_begin|>", "<|tool_call_end|>", "<|START_THINKING|>", "<|END_THINKING|>",
        "<|START_RESPONSE|>", "<|END_RESPONSE|>",
    }  # fmt: skip
    assert AnswerFormats().marks() == ()


def test_the_grammar_of_an_answer() -> None:
    formats, tools = AnswerFormats(TOOL_FORMATS["mistral"], THINK), [Tool("f"), Tool("g", strict=True)]
    assert formats.grammar("", tools[:1]) is None
    assert AnswerFormats().grammar("", tools) is None
    free, forced = formats.grammar("", tools), formats.grammar("", tools, forced=True, special={"[TOOL_CALLS]": 5})
    assert free is not None and "[TOOL_CALLS]" in free
    assert forced is not None and "<[5]>" in forced and "</think>" in forced and "<think>" in forced
    assert "<think>" not in str(formats.grammar("<think>\n", tools, forced=True))
    assert str(AnswerFormats().grammar("", tools, forced=True, several=False)).count("<tool_call>") == 1
