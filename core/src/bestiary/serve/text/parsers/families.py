"""What is known of how families write: a row each, mostly under the names that vLLM has for them.

A row is here because a chat template of the family writes calls so, or its authors say so. The parser, the grammar that
forces a call and the search for a model's own row all read these values and nothing else.
"""

from __future__ import annotations

from dataclasses import replace

from bestiary.api.hooks import Offers, hookimpl
from bestiary.api.text_formats import JsonCall, NamedCall, PythonCall, ReasoningFormat, TaggedCall, ToolFormat

_FUNCTION_TAGS = TaggedCall(
    opening="<function=", name_closing=">\n",
    key_opening="<parameter=", key_closing=">", value_closing="</parameter>\n", closing="</function>",
)  # fmt: skip

HERMES = ToolFormat(opening=("<tool_call>",), closing="</tool_call>", layout="\n", call=JsonCall())
"""Hermes, Qwen 2.5 and 3, Granite 4, SmolLM 2 and 3, and many others."""

_JSON_IN_TAGS = {
    "hermes": HERMES,
    "mistral": ToolFormat(opening=("[TOOL_CALLS]",), brackets=True, call=JsonCall()),
    "llama3_json": ToolFormat(
        opening=("<|python_tag|>",), bare=True, separator="; ", call=JsonCall(arguments=("parameters", "arguments")),
        signs=("<|start_header_id|>", '"parameters": '),
    ),
    "granite": ToolFormat(
        opening=("<|tool_call|>", "<tool_call>"), brackets=True, call=JsonCall(), signs=("<|tool_call|>",)
    ),
    "granite-20b-fc": ToolFormat(opening=("<function_call>",), call=JsonCall()),
    "phi4_mini_json": ToolFormat(opening=("functools",), brackets=True, call=JsonCall(), signs=("functools[",)),
    "phi4_mini": ToolFormat(
        opening=("<|tool_call|>",), closing="<|/tool_call|>", brackets=True, call=JsonCall(),
        signs=("<|tool|>", "<|/tool|>"),
    ),
    "jamba": ToolFormat(opening=("<tool_calls>",), closing="</tool_calls>", brackets=True, call=JsonCall()),
    "nemotron": ToolFormat(opening=("<TOOLCALL>",), closing="</TOOLCALL>", brackets=True, call=JsonCall()),
    "cohere": ToolFormat(
        opening=("<|START_ACTION|>",), closing="<|END_ACTION|>", brackets=True,
        call=JsonCall(name="tool_name", arguments=("parameters",)),
    ),
    "internlm": ToolFormat(
        opening=("<|action_start|><|plugin|>",), closing="<|action_end|>",
        call=JsonCall(arguments=("parameters", "arguments")),
    ),
}  # fmt: skip
_NAMES_THEN_JSON = {
    "mistral_args": ToolFormat(
        opening=("[TOOL_CALLS]",), call=NamedCall(header="", between="[ARGS]"), signs=("[TOOL_CALLS]", "[ARGS]")
    ),
    "deepseek_v3": ToolFormat(
        opening=("<｜tool▁calls▁begin｜>",), closing="<｜tool▁calls▁end｜>", separator="\n",
        call=NamedCall(
            opening="<｜tool▁call▁begin｜>function<｜tool▁sep｜>", between="\n```json\n",
            closing="\n```<｜tool▁call▁end｜>",
        ),
        signs=("<｜tool▁calls▁begin｜>", "```json"),
    ),
    "deepseek_v31": ToolFormat(
        opening=("<｜tool▁calls▁begin｜>",), closing="<｜tool▁calls▁end｜>", separator="",
        call=NamedCall(opening="<｜tool▁call▁begin｜>", between="<｜tool▁sep｜>", closing="<｜tool▁call▁end｜>"),
    ),
    "kimi_k2": ToolFormat(
        opening=("<|tool_calls_section_begin|>",), closing="<|tool_calls_section_end|>", separator="",
        call=NamedCall(
            opening="<|tool_call_begin|>functions.", header=":0", between="<|tool_call_argument_begin|>",
            closing="<|tool_call_end|>",
        ),
    ),
    "openai": ToolFormat(
        opening=(
            "<|channel|>commentary to=functions.", "<|start|>assistant<|channel|>commentary to=functions.",
            "<|start|>assistant to=functions.", "<|channel|>analysis to=functions.",
            "<|start|>assistant<|channel|>analysis to=functions.",
        ),
        closing="<|call|>", call=NamedCall(header=" <|constrain|>json", between="<|message|>"),
        signs=("<|channel|>commentary", " to=functions."),
    ),
}  # fmt: skip
_TAGS = {
    "qwen3_coder": ToolFormat(
        opening=("<tool_call>",), closing="</tool_call>", layout="\n", call=replace(_FUNCTION_TAGS, padding="\n"),
        signs=("<tool_call>", "<function=", "<parameter="),
    ),
    "seed_oss": ToolFormat(
        opening=("<seed:tool_call>",), closing="</seed:tool_call>", layout="\n", call=_FUNCTION_TAGS
    ),
    "minimax_m2": ToolFormat(
        opening=("<minimax:tool_call>",), closing="</minimax:tool_call>", layout="\n", separator="\n",
        call=TaggedCall(
            opening='<invoke name="', name_closing='">\n',
            key_opening='<parameter name="', key_closing='">', value_closing="</parameter>\n", closing="</invoke>",
        ),
    ),
    "glm45": ToolFormat(
        opening=("<tool_call>",), closing="</tool_call>",
        call=TaggedCall(
            name_closing="\n",
            key_opening="<arg_key>", key_closing="</arg_key>\n<arg_value>", value_closing="</arg_value>\n",
        ),
        signs=("<tool_call>", "<arg_key>", "<arg_value>"),
    ),
}  # fmt: skip
_PYTHON = {
    "pythonic": ToolFormat(bare=True, brackets=True, call=PythonCall(), signs=("[func_name1(",)),
    "llama4_pythonic": ToolFormat(
        opening=("<|python_start|>",), closing="<|python_end|>", bare=True, brackets=True, call=PythonCall()
    ),
    "lfm2": ToolFormat(
        opening=("<|tool_call_start|>",), closing="<|tool_call_end|>", brackets=True, call=PythonCall()
    ),
    "olmo3": ToolFormat(
        opening=("<function_calls>",), closing="</function_calls>", layout="\n", separator="\n", call=PythonCall()
    ),
}  # fmt: skip
TOOL_FORMATS = _JSON_IN_TAGS | _NAMES_THEN_JSON | _TAGS | _PYTHON

THINK = ReasoningFormat(opening=("<think>",), closing=("</think>",))
"""DeepSeek-R1, Qwen 3, and most others."""

REASONING_FORMATS = {
    "think": THINK,
    "deepseek_r1": replace(THINK, inside=True),
    "mistral": ReasoningFormat(opening=("[THINK]",), closing=("[/THINK]",)),
    "seed_oss": ReasoningFormat(opening=("<seed:think>",), closing=("</seed:think>",)),
    "exaone": ReasoningFormat(opening=("<thought>",), closing=("</thought>",)),
    "hunyuan_a13b": replace(THINK, dropped=("<answer>", "</answer>"), signs=("</think>", "<answer>")),
    "granite": ReasoningFormat(
        opening=("Here is my thought process:", "Here's my thought process:"),
        closing=("Here is my response:", "Here's my response:"),
    ),
    "cohere": ReasoningFormat(
        opening=("<|START_THINKING|>",), closing=("<|END_THINKING|>",),
        dropped=("<|START_RESPONSE|>", "<|END_RESPONSE|>"),
    ),
    "openai_gptoss": ReasoningFormat(
        opening=("<|channel|>analysis<|message|>", "<|start|>assistant<|channel|>analysis<|message|>"),
        closing=("<|end|>",),
        anywhere=True,
        dropped=(
            "<|channel|>final<|message|>", "<|start|>assistant<|channel|>final<|message|>",
            "<|channel|>commentary<|message|>", "<|start|>assistant<|channel|>commentary<|message|>",
            "<|end|>", "<|return|>",
        ),
        signs=("<|channel|>analysis",),
    ),
}  # fmt: skip


@hookimpl
def tool_call_parsers() -> Offers:
    return dict(TOOL_FORMATS)


@hookimpl
def reasoning_parsers() -> Offers:
    return dict(REASONING_FORMATS)
