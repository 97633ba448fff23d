# ruff: noqa: E501 — templates are quoted in the shape their authors gave them
"""Chat templates in the manner of the well-known families, each exercising another part of the language."""

from __future__ import annotations

from typing import Any

SYSTEM = {"role": "system", "content": "  Be brief.  "}
USER = {"role": "user", "content": " What is 1 < 2 & 'x'?\n"}
ASSISTANT = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nYes — naïvely 😀."}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 1.0, "b": [1.5, None, True]}}}],
}
TOOL = {"role": "tool", "content": '{"sum": 3}'}
PARTS = {
    "role": "user",
    "content": [{"type": "text", "text": "look"}, {"type": "text", "text": "!"}],
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Adds <numbers> & “more”",
            "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
        },
    }
]
CHATS: list[list[dict[str, Any]]] = [
    [USER],
    [SYSTEM, USER],
    [SYSTEM, USER, ASSISTANT, USER],
    [USER, ASSISTANT, USER, CALL, TOOL, TOOL, ASSISTANT],
    [SYSTEM, PARTS],
    [],
]

TEMPLATES = {
    "chatml": "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + (message['content'] or '') | string"
    " + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "llama2": """
{%- if messages and messages[0]['role'] == 'system' -%}
  {%- set loop_messages = messages[1:] -%}{%- set system_message = messages[0]['content'] -%}
{%- else -%}
  {%- set loop_messages = messages -%}{%- set system_message = false -%}
{%- endif -%}
{%- for message in loop_messages -%}
  {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
    {{- raise_exception('Roles must alternate user/assistant') -}}
  {%- endif -%}
  {%- if loop.index0 == 0 and system_message != false -%}
    {%- set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content']|string -%}
  {%- else -%}
    {%- set content = message['content']|string -%}
  {%- endif -%}
  {%- if message['role'] == 'user' -%}
    {{- bos_token + '[INST] ' + content.strip() + ' [/INST]' -}}
  {%- elif message['role'] == 'assistant' -%}
    {{- ' ' + content.strip() + ' ' + eos_token -}}
  {%- endif -%}
{%- endfor -%}
""",
    "llama3": "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>'"
    " + message['role'] + '<|end_header_id|>\n\n' + message['content'] | string | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    "mistral_folding": """
{%- set ns = namespace(system='', index=0) -%}
{%- for m in messages %}
    {%- if m.role == 'system' %}{% set ns.system = m.content + '\\n\\n' %}{% continue %}{% endif %}
    {%- if m.role == 'user' %}
        {%- set ns.index = ns.index + 1 %}
        {{- '[INST] ' ~ (ns.system if ns.index == 1 else '') ~ m.content ~ '[/INST]' }}
    {%- elif m.tool_calls is defined and m.tool_calls is not none %}
        {{- '[TOOL_CALLS] [' }}
        {%- for call in m.tool_calls %}
            {{- call.function|tojson }}{{ ', ' if not loop.last }}
        {%- endfor %}
        {{- ']' + eos_token }}
    {%- else %}
        {{- ' ' ~ m['content'] ~ eos_token }}
    {%- endif %}
{%- endfor %}
""",
    "gemma": "{{ bos_token }}{% if messages and messages[0]['role'] == 'system' %}{{ raise_exception('System role not"
    " supported') }}{% endif %}{% for message in messages %}{% if message['role'] == 'assistant' %}{% set role = 'model' %}"
    "{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content']|string|trim"
    " + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
    "zephyr": """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\n' ~ message['content'] ~ eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\n' + message['content'] + eos_token }}
{% else %}
{{ '<|' ~ message['role'] ~ '|>\n'  ~ message['content'] ~ eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}""",
    "qwen_tools": """
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages and messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- "# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and
        not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}{%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}{%- set content = message.content %}{%- else %}{%- set content = '' %}{%- endif %}
    {%- if message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or (not loop.last and reasoning_content)) %}
            {{- '<|im_start|>assistant\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls or [] %}
            {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' ~ tool_call.name ~ '", "arguments": ' }}
            {%- if tool_call.arguments is string %}{{- tool_call.arguments }}
            {%- else %}{{- tool_call.arguments | tojson }}{%- endif %}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}""",
    "deepseek": "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"
    "{% set ns = namespace(is_first=false, is_tool=false, system_prompt='') %}{%- for message in messages %}"
    "{%- if message['role'] == 'system' %}{% set ns.system_prompt = message['content'] %}{%- endif %}{%- endfor %}"
    "{{bos_token}}{{ns.system_prompt}}{%- for message in messages %}{%- if message['role'] == 'user' %}"
    "{%- set ns.is_tool = false -%}{{'<｜User｜>' ~ message['content']}}{%- endif %}{%- if message['role'] == 'assistant'"
    " and message['content'] is not none %}{% set content = message['content'] %}{% if '</think>' in content %}"
    "{% set content = content.split('</think>')[-1] %}{% endif %}{{'<｜Assistant｜>' + content + eos_token}}{%- endif %}"
    "{%- endfor -%}{% if add_generation_prompt %}{{'<｜Assistant｜><think>\n'}}{% endif %}",
    "phi": "{% for message in messages %}{% if message['role'] in ['system', 'user', 'assistant'] and message['content'] is"
    " string %}{{'<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
    "command_r": """
{{- bos_token }}
{%- macro turn(role, content) -%}
<|START_OF_TURN_TOKEN|><|{{ role|upper }}_TOKEN|>{{ content|trim }}<|END_OF_TURN_TOKEN|>
{%- endmacro -%}
{%- macro document(item, index=0) %}
{{ index }}: {{ item.title|default('untitled')|title }}
{% endmacro %}
{%- for m in messages if m.content is string -%}
    {{- turn({'user': 'user', 'system': 'system'}.get(m.role, 'chatbot'), m.content) -}}
{%- endfor -%}
{%- for d in documents|default([]) -%}{{- document(d, loop.index) -}}{%- endfor -%}
{%- if add_generation_prompt -%}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{%- endif -%}
""",
    "parts": """{% for message in messages %}{{ message.role | capitalize }}:
{% if message.content is string %} {{ message.content }}
{% elif message.content is iterable and message.content is not none %}
{% for part in message.content %}{% if part['type'] == 'text' %} {{ part['text'] }}{% else %}<{{ part.type }}>{% endif %}
{%- endfor %}
{% endif %}{% endfor %}""",
    "loops": "{% for m in messages %}{{ loop.index }}/{{ loop.length }} {{ loop.first }} {{ loop.last }} {{ loop.revindex0 }}"
    " {{ loop.previtem.role if loop.previtem is defined else 'start' }}>{{ loop.nextitem.role if not loop.last else 'end' }}"
    " {{ loop.cycle('a', 'b') }}{% else %}empty{% endfor %}",
    "filters": "{{ messages|map(attribute='role')|join(', ') }} {{ messages|selectattr('role', 'equalto', 'user')|list|length }}"
    " {{ messages|rejectattr('role', 'equalto', 'user')|map(attribute='role')|unique|list }}"
    " {{ (messages|first|default({}, true)).get('role', 'none') }} {{ messages|count }} {{ [3, 1, 2]|sort|join('-') }}"
    " {{ [3, 1, 2]|max }} {{ 'a b'|title }} {{ 'aXb'|lower|replace('x', '--') }} {{ none|default('d') }} {{ x|default('e') }}"
    " {{ ''|default('f', true) }} {{ '%s=%d'|format('n', 4) }} {{ -3|abs }} {{ '7'|int + 1 }} {{ 2.50|float }}"
    " {{ 'abc'|reverse }} {{ [1, 2]|sum }} {{ 'one two'|wordcount }} {{ {'b': 1, 'a': 2}|dictsort }}",
    "tests": "{{ messages is sequence }} {{ messages is mapping }} {{ bos_token is string }} {{ x is defined }} {{ x is undefined }}"
    " {{ none is none }} {{ 3 is number }} {{ true is boolean }} {{ 3 is odd }} {{ 4 is divisibleby(2) }} {{ 1 in [1] }}"
    " {{ 'a' not in 'b' }} {{ 1 is sameas 1 }} {{ add_generation_prompt is true }} {{ 2 is eq 2 }} {{ tools is none }}",
    "values": "{{ none }} {{ true }} {{ [1, 'a', none, 1.0] }} {{ {'k': [true]} }} {{ 1.0 }} {{ 7 // 2 }} {{ 7 / 2 }} {{ -7 % 3 }}"
    " {{ 2 ** 5 }} {{ 'a' ~ 1 ~ none }} {{ (1, 2) }} {{ [1] + [2] }} {{ 'ab' * 2 }} {{ 'it' + \"'s\" }} {{ [\"it's\"] }}",
    "strings": "{% for m in messages if m.content is string %}{% set c = m.content %}{{ c.strip()|length }} {{ c.upper() }}"
    " {{ c.lower() }} {{ c.replace('a', 'A') }} {{ c.split(' ')[0] }} {{ c.split() }} {{ c.splitlines() }} {{ c.lstrip() }}|"
    "{{ c.rstrip() }}| {{ c.startswith(' ') }} {{ c.endswith(('.', '!')) if false else c.endswith('.') }} {{ 'ab cd'.title() }} {{ '{} and {:>4}'.format(1, 'x') }}"
    " {{ c.find('i') }} {{ c.count('i') }} {{ c[0] }} {{ c[-1] }} {{ c[1:3] }} {{ c[::-1] }} {{ '-'.join(['a', 'b']) }}"
    "{% endfor %}",
    "slices": "{% for m in messages[1:] %}{{ m.role }}{% endfor %}|{% for m in messages[:-1] %}{{ m.role }}{% endfor %}|"
    "{% for m in messages[::-1] %}{{ m['role'] }}{% endfor %}|{{ messages[-1].role if messages else '' }}|{{ messages[0:1]|length }}",
    "items": "{% for message in messages %}{% for key, value in message.items() %}{{ key }}={{ value }};{% endfor %}"
    "{% for key in message|sort %}{{ key }},{% endfor %}{% for key, value in message|items %}{{ key }}{% endfor %}{% endfor %}",
    "json": "{{ tools|tojson }}\n{{ tools|tojson(indent=2) }}\n{{ messages|tojson(indent=4) }}\n{{ {'é<>&': \"'\"}|tojson }}"
    "\n{{ {'b': 1, 'a': 2}|tojson(sort_keys=true) }}\n{{ [1, 2]|tojson(separators=(',', ':')) }}"
    "\n{{ 'é'|tojson(ensure_ascii=true) }} {{ 1.5|tojson }} {{ 1e30|tojson }}",
    "whitespace": "a  \n  {% if true %}  \n  b\n  {% endif %}  \n{#- comment -#}  c \n   {%- if true +%}  d{% endif %}\n{# x #}\n"
    "e{{ ' f' -}}   \n  g\n\n",
    "generation": "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
    "{% else %}{{ m.content }}\n  {%- generation -%}  x  {%- endgeneration %}{% endif %}\n{% endfor %}",
    "scoping": "{% set x = 1 %}{% for m in messages %}{% set x = x + 1 %}{{ x }}{% endfor %}{{ x }}{% if true %}{% set x = 9 %}"
    "{% endif %}{{ x }}{% set block %}captured {{ x }}{% endset %}{{ block }}{% set a, b = 1, 2 %}{{ a }}{{ b }}"
    "{% with y = 5 %}{{ y }}{% endwith %}{{ y is defined }}{% filter upper %}shout{% endfilter %}",
    "breaks": "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{% if m.role == 'system' %}{% continue %}"
    "{% endif %}{{ m.role }}{% endfor %}{% raw %}{{ untouched }}{% endraw %}",
    "caller": "{% macro box(kind) %}<{{ kind }}>{{ caller() }}</{{ kind }}>{% endmacro %}{% call box('b') %}in{% endcall %}"
    "{% macro deep(n) %}{{ n }}{% if n > 0 %}{{ deep(n - 1) }}{% endif %}{% endmacro %}{{ deep(4) }}{{ dict(a=1).a }}",
    "undefined": "{{ nothing }}[{% for x in nothing %}x{% endfor %}]{{ 'y' if nothing else 'n' }}{{ messages[0].nothing }}"
    "{{ (messages|first).reasoning_content }}",
}
