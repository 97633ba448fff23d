# ruff: noqa: E501 — templates are quoted in the shape their authors gave them
"""Chat templates in the manner of families that call tools, as far as calls go, and what is to be found in them."""

from __future__ import annotations

from typing import NamedTuple

_CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}CALLS<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
_TOOLS = "{% if tools %}{{ tools|tojson }}{% endif %}"


class Case(NamedTuple):
    template: str
    tools: str | None
    reasoning: str | None = None
    arguments: str = "object"
    shows_tools: bool = True


def chatml(calls: str, tools: str = _TOOLS, prompt: str = "") -> str:
    """A ChatML template that writes `calls` for a message's tool calls, each as `c`."""
    written = "{% if m.tool_calls %}" + calls + "{% endif %}"
    return tools + _CHATML.replace("CALLS", written).replace("assistant\n{% endif", f"assistant\n{prompt}{{% endif")


def each(call: str) -> str:
    return "{% for c in m.tool_calls %}{% set c = c.function %}" + call + "{% endfor %}"


def listed(call: str) -> str:
    return "[" + each(call + "{% if not loop.last %}, {% endif %}") + "]"


_JSON = '{"name": "{{ c.name }}", "arguments": {{ c.arguments|tojson }}}'
_TAGS = "<function={{ c.name }}>\n{% for k, v in c.arguments|items %}<parameter={{ k }}>PAD{{ v }}PAD</parameter>\n{% endfor %}</function>"
_PYTHON = "{{ c.name }}({% for k, v in c.arguments|items %}{{ k }}={{ v|tojson }}{% if not loop.last %}, {% endif %}{% endfor %})"
_DEEPSEEK = (
    _TOOLS
    + "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<｜User｜>{{ m.content }}<｜Assistant｜>{% elif m.role == 'tool' %}"
    "<｜tool▁output▁begin｜>{{ m.content }}<｜tool▁output▁end｜>{% elif m.tool_calls %}{% for c in m.tool_calls %}{% if loop.first %}"
    "{{ m.content + '<｜tool▁calls▁begin｜>' }}{% endif %}CALL{% endfor %}<｜tool▁calls▁end｜>{{ eos_token }}"
    "{% else %}{{ m.content.split('</think>')[-1] }}{{ eos_token }}{% endif %}{% endfor %}"
)
_LLAMA = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'tool' %}<|start_header_id|>ipython<|end_header_id|>\n\n{{ m.content|tojson }}<|eot_id|>"
    "{% elif 'tool_calls' in m %}{% if m.tool_calls|length != 1 %}{{ raise_exception('This model only supports single tool-calls at once!') }}{% endif %}"
    "{% set c = m.tool_calls[0].function %}<|start_header_id|>assistant<|end_header_id|>\n\n"
    '{{ \'{"name": "\' + c.name + \'", "parameters": \' }}{{ c.arguments|tojson }}}<|eot_id|>'
    "{% else %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{% if tools and m.role == 'user' %}Respond in the format "
    '{"name": function name, "parameters": dictionary}. {{ tools|tojson }}{% endif %}{{ m.content }}<|eot_id|>{% endif %}{% endfor %}'
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
_HARMONY = (
    "{% if tools %}namespace functions {{ tools|tojson }}{% endif %}{% for m in messages %}{% if m.role == 'tool' %}<|start|>functions.x to=assistant<|channel|>"
    "commentary<|message|>{{ m.content|tojson }}<|end|>{% elif m.tool_calls %}{% for c in m.tool_calls %}{{ '<|start|>assistant to=functions.' + c.function.name }}"
    "<|channel|>commentary json<|message|>{{ c.function.arguments|tojson }}<|call|>{% endfor %}{% elif m.role == 'assistant' %}<|start|>assistant<|channel|>analysis"
    "<|message|>{{ m.thinking }}<|end|><|start|>assistant<|channel|>final<|message|>{{ m.content }}<|end|>{% else %}<|start|>{{ m.role }}<|message|>"
    "{{ m.content }}<|end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
_MISTRAL_IDS = (
    "{% if m.tool_calls %}[TOOL_CALLS] [{% for c in m.tool_calls %}{% set out = c.function|tojson %}{{ out[:-1] }}"
    "{% if c.id|length < 9 %}{{ raise_exception('ids have nine letters') }}{% endif %}{{ ', \"id\": \"' + c.id[-9:] + '\"}' }}"
    "{% if not loop.last %}, {% endif %}{% endfor %}]{% endif %}"
)

CASES = {
    "hermes": Case(chatml(each("\n<tool_call>\n" + _JSON + "\n</tool_call>")), "hermes"),
    "hermes, thinking": Case(
        chatml(each("\n<tool_call>\n" + _JSON + "\n</tool_call>"), prompt="<think>\n") + "{# </think> #}", "hermes", "think",
    ),
    "a list in hermes' tags": Case(chatml("<tool_call>" + listed(_JSON) + "</tool_call>"), "hermes"),
    "mistral": Case(_TOOLS + "{% for m in messages %}[INST]{{ m.content }}[/INST]" + _MISTRAL_IDS + "{% endfor %}", "mistral"),
    "mistral, newer": Case(
        chatml(each("[TOOL_CALLS]{{ c.name }}[ARGS]{{ c.arguments|tojson }}")) + "{# [THINK] [/THINK] #}", "mistral_args", "mistral",
    ),
    "llama": Case(_LLAMA, "llama3_json"),
    "text arguments": Case(
        chatml(each('<tool_call>{"name": "{{ c.name }}", "arguments": {{ c.arguments }}}</tool_call>')), "hermes", arguments="text",
    ),
    "granite": Case(chatml("<|tool_call|>" + listed(_JSON)) + "{# Here is my response: #}", "granite", "granite"),
    "nemotron": Case(chatml("<TOOLCALL>" + listed(_JSON) + "</TOOLCALL>"), "nemotron"),
    "hunyuan": Case(chatml("<tool_calls>" + listed(_JSON) + "</tool_calls>") + "{# </think> <answer> #}", "jamba", "hunyuan_a13b"),
    "cohere": Case(
        chatml("<|START_ACTION|>" + listed('{"tool_call_id": "{{ loop.index0 }}", "tool_name": "{{ c.name }}", "parameters": {{ c.arguments|tojson }}}')
               + "<|END_ACTION|>") + "{# <|END_THINKING|> #}", "cohere", "cohere",
    ),
    "deepseek v3": Case(_DEEPSEEK.replace("CALL{%", "{{ '<｜tool▁call▁begin｜>' + c.type + '<｜tool▁sep｜>' + c.function.name + '\n```json\n' + c.function.arguments|tojson + '\n```<｜tool▁call▁end｜>' }}{%"), "deepseek_v3", "think"),
    "deepseek v3.1": Case(_DEEPSEEK.replace("CALL{%", "{{ '<｜tool▁call▁begin｜>' + c.function.name + '<｜tool▁sep｜>' + c.function.arguments + '<｜tool▁call▁end｜>' }}{%"), "deepseek_v31", "think", "text"),
    "kimi": Case(chatml("<|tool_calls_section_begin|>" + each("<|tool_call_begin|>functions.{{ c.name }}:{{ loop.index0 }}<|tool_call_argument_begin|>{{ c.arguments|tojson }}<|tool_call_end|>") + "<|tool_calls_section_end|>"), "kimi_k2"),
    "harmony": Case(_HARMONY, "openai", "openai_gptoss"),
    "qwen coder": Case(chatml(each("\n<tool_call>\n" + _TAGS.replace("PAD", "\n") + "\n</tool_call>")), "qwen3_coder"),
    "seed": Case(chatml(each("\n<seed:tool_call>\n" + _TAGS.replace("PAD", "") + "\n</seed:tool_call>")) + "{# </seed:think> #}", "seed_oss", "seed_oss"),
    "glm": Case(chatml(each("\n<tool_call>{{ c.name }}\n{% for k, v in c.arguments|items %}<arg_key>{{ k }}</arg_key>\n<arg_value>{{ v }}</arg_value>\n{% endfor %}</tool_call>")), "glm45"),
    "minimax": Case(chatml("<minimax:tool_call>\n" + each('<invoke name="{{ c.name }}">\n{% for k, v in c.arguments|items %}<parameter name="{{ k }}">{{ v }}</parameter>\n{% endfor %}</invoke>\n') + "</minimax:tool_call>"), "minimax_m2"),
    "llama, pythonic": Case(chatml(listed(_PYTHON)), "pythonic"),
    "llama 4": Case(chatml("<|python_start|>" + listed(_PYTHON) + "<|python_end|>"), "llama4_pythonic"),
    "lfm2": Case(chatml("<|tool_call_start|>" + listed(_PYTHON) + "<|tool_call_end|>"), "lfm2"),
    "olmo": Case(chatml("<function_calls>\n" + each("{{ '' if loop.first else '\n' }}" + _PYTHON) + "\n</function_calls>"), "olmo3"),
    "phi, by its words alone": Case("{# prefix functools[{...}] #}" + chatml(""), "phi4_mini_json"),
    "a family of its own": Case(chatml("<call>" + listed('{"fn": "{{ c.name }}", "with": {{ c.arguments|tojson }}}') + "</call>"), "a format of its own"),
    "one that hides tools": Case(chatml(each("\n<tool_call>\n" + _JSON + "\n</tool_call>"), tools=""), "hermes", shows_tools=False),
    "one that refuses tools": Case("{% if tools %}{{ raise_exception('no tools') }}{% endif %}" + chatml(""), None, shows_tools=False),
    "one without calls": Case(chatml("") + "{# <thought> </thought> #}", None, "exaone"),
    "one that writes without end": Case("{% for i in range(9000) %}<tool_call>{% endfor %}" + chatml(""), "hermes", shows_tools=False),
    "one that is broken": Case("{{ 1 +", None, shows_tools=False),
}  # fmt: skip
