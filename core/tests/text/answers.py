# ruff: noqa: E501 — answers are quoted as models write them
"""What models of each family write, and what it means."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable
from typing import Any, NamedTuple

from bestiary.api.hooks import TextDelta, TextParser, ToolCallDelta
from bestiary.api.text_formats import ReasoningFormat, ToolFormat
from bestiary.serve.text.parsers.families import REASONING_FORMATS, TOOL_FORMATS
from bestiary.serve.text.parsers.reasoning import ReasoningParser
from bestiary.serve.text.parsers.tool_calls import ToolCallParser

TOOLS: dict[str, dict[str, Any]] = {
    "add": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": ["number", "null"]}}},
    "say": {"type": "object", "properties": {"text": {"type": "string"}, "to": {"type": "array"}, "loud": {}}},
    "now": {"type": "object", "properties": {}},
}
ADD, SAY, NOW = ("add", '{"a": 1, "b": 2.5}'), ("say", '{"text": "Zürich \\"🏔\\"", "to": ["x"]}'), ("now", "{}")
BOTH = [ADD, SAY]


class Sample(NamedTuple):
    family: str
    text: str
    content: str
    calls: list[tuple[str, str]]


def calls(*pairs: tuple[str, str]) -> list[tuple[str, str]]:
    return list(pairs)


SAMPLES = [
    Sample("hermes", "", "", []),
    Sample("hermes", "plain text, 2 < 3 <tool \n", "plain text, 2 < 3 <tool \n", []),
    Sample(
        "hermes",
        'I add.\n\n<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2.5}}\n</tool_call>\n'
        '<tool_call>{"arguments": {"text": "Zürich \\"🏔\\"", "to": ["x"]}, "name": "say"}</tool_call>\n done ',
        "I add.\ndone ", BOTH,
    ),
    Sample("hermes", '<tool_call>[{"name": "now"}, {"name": "now", "arguments": {}, "id": 7}]</tool_call>', "", [NOW, NOW]),
    Sample("hermes", "<tool_call>not json</tool_call> and more", "<tool_call>not json</tool_call> and more", []),
    Sample("hermes", '<<tool_call><tool_call>{"name": "now"', '<<tool_call><tool_call>{"name": "now"', []),
    Sample("hermes", '<tool_call>{"name": "add", "arguments": {"a": [1, 2]', "", calls(("add", '{"a": [1, 2]'))),
    Sample("hermes", '<tool_call>{"name": "now", "arguments": {}</tool_call> missing', "missing", [NOW]),
    Sample("hermes", '<tool_call>{"name": "now", "arguments": {}}, or not', ", or not", [NOW]),
    Sample("hermes", '<tool_call>{"name": "now", "arguments": {}, or not}', ", or not}", [NOW]),
    Sample("hermes", '<tool_call>{"name": "now", "argument": {"a": 1}}', '<tool_call>{"name": "now", "argument": {"a": 1}}', []),
    Sample("hermes", '<tool_call>{"name": "add", "arguments": {"a": one}}</tool_call> x', "x", calls(("add", '{"a": one}}'))),
    Sample("hermes", '<tool_call>{"name": "say", "arguments": {"text": "a\nb"}}', "", calls(("say", '{"text": "a\\nb"}'))),
    Sample("mistral", '[TOOL_CALLS] [{"name": "add", "arguments": {"a": 1, "b": 2.5}, "id": "abcdefghi"}, {"name": "say",'
           ' "arguments": {"text": "Zürich \\"🏔\\"", "to": ["x"]}}]', "", BOTH),
    Sample("mistral", '[TOOL_CALLS][{"name": "now", "arguments": {}}, {"name": "now"', ', {"name": "now"', [NOW]),
    Sample("mistral_args", 'So:[TOOL_CALLS]add[ARGS]{"a": 1, "b": 2.5}[TOOL_CALLS]say[CALL_ID]123456789[ARGS]'
           '{"text": "Zürich \\"🏔\\"", "to": ["x"]}', "So:", BOTH),
    Sample("llama3_json", '{"name": "add", "parameters": {"a": 1, "b": 2.5}}; {"type": "function", "name": "say", "parameters":'
           ' {"text": "Zürich \\"🏔\\"", "to": ["x"]}}', "", BOTH),
    Sample("llama3_json", '<|python_tag|>{"name": "unheard_of", "parameters": {}}', "", calls(("unheard_of", "{}"))),
    Sample("llama3_json", '{"name": "Anna", "parameters": {}}', '{"name": "Anna", "parameters": {}}', []),
    Sample("llama3_json", '{"city": "Bern"} {"name": "now"}', '{"city": "Bern"} {"name": "now"}', []),
    Sample("granite", '<|tool_call|>[{"name": "add", "arguments": {"a": 1, "b": 2.5}}, {"name": "now", "arguments": {}}]',
           "", [ADD, NOW]),
    Sample("granite-20b-fc", '<function_call> {"name": "now", "arguments": {}} <function_call> {"name": "now"}', "", [NOW, NOW]),
    Sample("phi4_mini_json", 'functools[{"name": "add", "arguments": {"a": 1, "b": 2.5}}]', "", [ADD]),
    Sample("phi4_mini_json", "import functools\n[1]", "import functools\n[1]", []),
    Sample("phi4_mini", '<|tool_call|>[{"name": "now", "arguments": {}}]<|/tool_call|>', "", [NOW]),
    Sample("jamba", 'Ok <tool_calls>[{"name": "now", "arguments": {}}]</tool_calls>', "Ok", [NOW]),
    Sample("nemotron", '<TOOLCALL>[{"name": "add", "arguments": {"a": 1, "b": 2.5}}]</TOOLCALL>', "", [ADD]),
    Sample("cohere", '<|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "add", "parameters": {"a": 1, "b": 2.5}}\n]'
           "<|END_ACTION|>", "", [ADD]),
    Sample("internlm", '<|action_start|><|plugin|>\n{"name": "now", "parameters": {}}<|action_end|>', "", [NOW]),
    Sample("deepseek_v3", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n"
           '{"a": 1, "b": 2.5}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n'
           "```<｜tool▁call▁end｜><｜tool▁calls▁end｜>", "", [ADD, NOW]),
    Sample("deepseek_v31", 'Hm.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>add<｜tool▁sep｜>{"a": 1, "b": 2.5}<｜tool▁call▁end｜>'
           "<｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>", "Hm.", [ADD, NOW]),
    Sample("deepseek_v31", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>add<｜tool▁sep｜>{a}<｜tool▁call▁end｜>"
           "<｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>", "", calls(("add", "{a}"), NOW)),
    Sample("kimi_k2", "<|tool_calls_section_begin|><|tool_call_begin|>functions.add:0<|tool_call_argument_begin|>"
           '{"a": 1, "b": 2.5}<|tool_call_end|><|tool_call_begin|>functions.now:1<|tool_call_argument_begin|>{}<|tool_call_end|>'
           "<|tool_calls_section_end|>", "", [ADD, NOW]),
    Sample("openai", "<|channel|>commentary to=functions.add <|constrain|>json<|message|>"
           '{"a": 1, "b": 2.5}<|call|>', "", [ADD]),
    Sample("openai", "<|start|>assistant to=functions.now<|channel|>commentary json<|message|>{}", "", [NOW]),
    Sample("openai", f"<|channel|>commentary to=functions.{'x' * 300}", f"<|channel|>commentary to=functions.{'x' * 300}", []),
    Sample("qwen3_coder", "\n<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n<parameter=b>\nnull\n</parameter>\n"
           "</function>\n</tool_call>", "", calls(("add", '{"a": 1, "b": null}'))),
    Sample("qwen3_coder", '<tool_call>\n<function=say>\n<parameter=text>\n\n5 "x"\n\n</parameter>\n<parameter=loud>\nTrue\n'
           '</parameter>\n<parameter=to>\n["x"]\n</parameter>\n</function>\n</tool_call>', "",
           calls(("say", '{"text": "\\n5 \\"x\\"\\n", "loud": true, "to": ["x"]}'))),
    Sample("qwen3_coder", "<tool_call>\n<function=now>\n</tool_call>", "", [NOW]),
    Sample("qwen3_coder", "<tool_call>\n<function=say>\n<parameter=text>\nin the mid", "", calls(("say", '{"text": "in the mid'))),
    Sample("qwen3_coder", "<tool_call>\n<function=add>\n<parameter=a>\none</parameter>\n<oops></tool_call>", "",
           calls(("add", '{"a": "one"\n<oops>'))),
    Sample("seed_oss", "<seed:tool_call>\n<function=add>\n<parameter=a>1</parameter>\n<parameter=b>2.5</parameter>\n</function>\n"
           "</seed:tool_call>", "", [ADD]),
    Sample("minimax_m2", '<minimax:tool_call>\n<invoke name="add">\n<parameter name="a">1</parameter>\n<parameter name="b">2.5'
           '</parameter>\n</invoke>\n<invoke name="now">\n</invoke>\n</minimax:tool_call>', "", [ADD, NOW]),
    Sample("glm45", "\n<tool_call>add\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n<arg_key>b</arg_key>\n<arg_value>2.5"
           "</arg_value>\n</tool_call>\n<tool_call>now</tool_call>", "", [ADD, NOW]),
    Sample("glm45", "<tool_call>hello there</tool_call>", "<tool_call>hello there</tool_call>", []),
    Sample("pythonic", "[add(a=1, b=2.5), say(text='Zürich \"🏔\"', to=[\"x\"]), now()]", "", [*BOTH, NOW]),
    Sample("pythonic", "[say(text='it\\'s \\x41\\d', loud={'k': (1,)})]", "",
           calls(("say", '{"text": "it\'s A\\\\d", "loud": {"k": (1,)})]'))),
    Sample("pythonic", "[say(loud=[True, False, None, -1e3])]", "", calls(("say", '{"loud": [true, false, null, -1e3]}'))),
    Sample("pythonic", "[print(1)] [add(a=1)]", "[print(1)] [add(a=1)]", []),
    Sample("llama4_pythonic", "<|python_start|>[now()]<|python_end|>", "", [NOW]),
    Sample("lfm2", "<|tool_call_start|>[add(a=1, b=2.5)]<|tool_call_end|>Adding.", "Adding.", [ADD]),
    Sample("olmo3", "<function_calls>\nadd(a=1, b=2.5)\nnow()\n</function_calls>", "", [ADD, NOW]),
]  # fmt: skip


class Thought(NamedTuple):
    family: str
    started: bool
    text: str
    reasoning: str
    content: str


THOUGHTS = [
    Thought("think", False, "", "", ""),
    Thought("think", False, " \n <think>\nhm </thin </think>\n\nAnswer <think>no</think> ", "hm </thin", "Answer <think>no</think> "),
    Thought("think", False, "<think>never ends ", "never ends", ""),
    Thought("think", False, "</think>too late", "", "</think>too late"),
    Thought("think", False, "  no thought \n<think>", "", "  no thought \n<think>"),
    Thought("think", True, "inside\n</think>\n42", "inside", "42"),
    Thought("think", True, "<think>again</think>42", "again", "42"),
    Thought("think", True, " <thin", "<thin", ""),
    Thought("deepseek_r1", False, "inside\n</think>\n42", "inside", "42"),
    Thought("mistral", False, "[THINK]x[/THINK]y", "x", "y"),
    Thought("seed_oss", False, "<seed:think>x</seed:think>y", "x", "y"),
    Thought("exaone", True, "x\n</thought>\n\ny", "x", "y"),
    Thought("hunyuan_a13b", False, "<think>\nx\n</think>\n<answer>\ny\n</answer>", "x", "y"),
    Thought("granite", False, "Here's my thought process: x. Here is my response: y", "x.", "y"),
    Thought("granite", False, "Here is my cat", "", "Here is my cat"),
    Thought("cohere", False, "<|START_THINKING|>x<|END_THINKING|><|START_RESPONSE|>y<|END_RESPONSE|>", "x", "y"),
    Thought("openai_gptoss", False, "<|channel|>analysis<|message|>one<|end|><|start|>assistant<|channel|>analysis<|message|>two"
            "<|end|><|start|>assistant<|channel|>final<|message|>y", "one\ntwo", "y"),
    Thought("openai_gptoss", False, "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant<|channel|>commentary"
            " to=functions.now<|message|>{}", "", "I look.\n<|start|>assistant<|channel|>commentary to=functions.now<|message|>{}"),
]  # fmt: skip


def tool_parser(family: str | ToolFormat) -> ToolCallParser:
    return ToolCallParser(TOOL_FORMATS[family] if isinstance(family, str) else family, TOOLS)


def reasoning_parser(family: str | ReasoningFormat, started: bool = False) -> ReasoningParser:
    return ReasoningParser(REASONING_FORMATS[family] if isinstance(family, str) else family, started=started)


def expected(content: str = "", reasoning: str = "", found: Iterable[tuple[str, str]] = ()) -> TextDelta:
    return TextDelta(content, reasoning, tuple(ToolCallDelta(number, *call) for number, call in enumerate(found)))


def chunked(parser: TextParser, chunks: Iterable[str]) -> TextDelta:
    return sum((parser.feed(chunk) for chunk in chunks), TextDelta()) + parser.finish()


def cut(text: str, places: Iterable[int]) -> list[str]:
    edges = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(edges)]


def cuts(text: str) -> Iterable[list[str]]:
    """All cuts into two, 200 at random, and into characters."""
    yield from ([text[:place], text[place:]] for place in range(len(text) + 1))
    draw = random.Random(text)
    for _ in range(200):
        yield cut(text, [draw.randrange(len(text) + 1) for _ in range(draw.randrange(1, 12))])
    yield list(text)
