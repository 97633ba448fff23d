"""Oracle: jinja2's immutable sandbox, set up by transformers itself."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import pytest

from bestiary.api.errors import RequestError
from bestiary.serve.cli.reading import read_template
from bestiary.serve.text.chat_template import TEMPLATE_LIMIT, render_chat
from bestiary.serve.text.tokenizer import load_gguf_tokenizer, load_tokenizer

from .corpus import byte_level
from .templates import CALL, CHATS, TEMPLATES, TOOLS, USER
from .test_tokenizer import byte_level_metadata

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
VARIANTS: list[dict[str, Any]] = [
    {"add_generation_prompt": True},
    {"add_generation_prompt": False, "tools": TOOLS, "enable_thinking": False},
    {"add_generation_prompt": True, "documents": [{"title": "one two"}, {}], "unk_token": "<unk>"},
]
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + "
    "message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def joined(message: dict[str, Any]) -> dict[str, Any]:
    """The message with the texts of its parts as one."""
    if not isinstance(message["content"], list):
        return message
    return {**message, "content": "\n".join(part["text"] for part in message["content"])}


def by_jinja2(template: str, messages: list[dict[str, Any]], **context: Any) -> str:
    from transformers.utils.chat_template_utils import _compile_jinja_template

    if template != TEMPLATES["parts"]:
        messages = [joined(each) for each in messages]
    compiled = _compile_jinja_template(template)
    return str(compiled.render(messages=messages, **{"tools": None, **TOKENS, **context}))


@pytest.mark.parametrize("name", TEMPLATES)
def test_parity_with_jinja2(name: str) -> None:
    compared = 0
    for messages in CHATS:
        for variant in VARIANTS:
            try:
                expected = by_jinja2(TEMPLATES[name], messages, **variant)
            except (jinja2.TemplateError, TypeError):
                with pytest.raises(RequestError) as error:
                    render_chat(TEMPLATES[name], messages, **TOKENS, **variant)
                assert error.value.error_code == "TEMPLATE_ERROR"
            else:
                assert render_chat(TEMPLATES[name], messages, **TOKENS, **variant) == expected
                compared += 1
    assert compared >= 3


def test_smollm2() -> None:
    for messages in CHATS[:3]:
        expected = by_jinja2(SMOLLM2, messages, add_generation_prompt=True)
        assert render_chat(SMOLLM2, messages, **TOKENS) == expected


def test_long_conversations_have_fuel() -> None:
    messages = [{"role": role, "content": "word " * 400} for role in ("user", "assistant")] * 500
    for name in ("chatml", "llama2", "qwen_tools"):
        assert render_chat(TEMPLATES[name], messages, **TOKENS) == by_jinja2(
            TEMPLATES[name], messages, add_generation_prompt=True
        )


def test_refusals_carry_the_templates_words() -> None:
    with pytest.raises(RequestError, match="Roles must alternate") as error:
        render_chat(TEMPLATES["llama2"], [USER, USER])
    assert (error.value.error_code, error.value.field) == ("TEMPLATE_ERROR", "messages")


def test_errors_name_the_line() -> None:
    with pytest.raises(RequestError, match=r"syntax error.*\(line 2\)") as error:
        render_chat("a\n{% if %}", [USER])
    assert error.value.error_code == "TEMPLATE_ERROR"
    with pytest.raises(RequestError, match="undefined"):
        render_chat("{{ a.b.c }}", [USER])


def test_time_is_available() -> None:
    import datetime

    assert render_chat("{{ strftime_now('%Y') }}", []) == str(datetime.datetime.now().year)


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        ("text", "messages"),
        (3, "messages"),
        ([3], "messages[0]"),
        ([USER, {}], "messages[1].role"),
        ([{"role": "user"}], "messages[0].content"),
        ([USER, {"role": "assistant", "content": None, "tool_calls": []}], "messages[1].content"),
        ([{"role": 3}], "messages[0].role"),
        ([{"role": "user", "content": 3}], "messages[0].content"),
        ([{"role": "user", "content": [object()]}], "messages[0].content[0]"),
        ([{"role": "user", "content": ["x"]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
        ([USER, {"role": "user", "content": "x", "more": object()}], "messages[1]"),
        ([USER, {"role": "user", "content": "caf\udce9"}], "messages[1]"),
        ([{"role": "user", "content": [{"type": "text", "text": "\ud800"}]}], "messages[0]"),
        ([{"role": "user", "content": "x", "caf\udce9": "x"}], "messages[0]"),
    ],
)
def test_bad_messages(messages: Any, field: str) -> None:
    with pytest.raises(RequestError) as error:
        render_chat(TEMPLATES["chatml"], messages)
    assert (error.value.error_code, error.value.field) == ("BAD_MESSAGES", field)


def test_a_message_without_content_is_named() -> None:
    with pytest.raises(RequestError, match="message 1 has no content"):
        render_chat(TEMPLATES["chatml"], [USER, {"role": "user"}])
    assert render_chat("x", [CALL]) == "x"  # tool calls are a content of their own


@pytest.mark.parametrize(
    "look", [".type", "['type']", '["type"]', ".text", "['text']", "[ 'text' ]"], ids=lambda look: look.strip()
)
def test_text_parts_are_joined_unless_the_template_looks_at_them(look: str) -> None:
    content = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    message = {"role": "user", "content": content}
    assert render_chat("{{ messages[0].content }}", [message]) == "a\nb"
    assert render_chat("{{ messages[0].content[1]" + look + " }}", [message]) in ("b", "text")
    assert render_chat("{{ messages[0].content|length }}{# .typed textual #}", [message]) == "3"
    assert message["content"] is content


@pytest.mark.parametrize("name", ["chatml", "parts"])
def test_other_parts_are_refused_whatever_the_template_does(name: str) -> None:
    content = [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": "x"}}]
    with pytest.raises(RequestError, match="text only") as error:
        render_chat(TEMPLATES[name], [USER, {"role": "user", "content": content}])
    assert (error.value.error_code, error.value.field) == ("UNSUPPORTED_INPUT", "messages[1].content[1]")
    assert error.value.value == "image_url"


def test_deep_messages_are_refused() -> None:
    deep: list[Any] = []
    for _ in range(5_000):
        deep = [deep]
    with pytest.raises(RequestError, match="nested"):
        render_chat("x", [{"role": "user", "content": "x", "more": deep}])


@pytest.mark.parametrize("name", ["raise_exception", "bos"])
def test_reserved_variables(name: str) -> None:
    if name == "bos":
        assert render_chat("{{ bos }}", [], bos="x") == "x"
    else:
        with pytest.raises(RequestError) as error:
            render_chat("x", [], **{name: "x"})
        assert error.value.error_code == "NOT_ALLOWED"


def test_the_callers_messages_stay_as_they_are() -> None:
    message: dict[str, Any] = {"role": "user", "content": "x", "more": ["x"]}
    for attack in ("{{ messages[0].update({'role': 'x'}) }}", "{{ messages[0].more.append('y') }}"):
        with pytest.raises(RequestError) as error:
            render_chat(attack, [message])
        assert error.value.error_code == "TEMPLATE_ERROR"
    assert message == {"role": "user", "content": "x", "more": ["x"]}


# ---------------------------------------------------------------------------------------------- hostile ones

RUNS_NOTHING = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__.__base__.__subclasses__() }}",
    "{{ messages[0].__class__ }}",
    "{{ messages|attr('__class__') }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ joiner.__init__.__globals__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__globals__['__builtins__'] }}",
    "{{ raise_exception.func_globals }}",
    "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "{{ '%s'|format(messages.__class__) }}",
    "{% import 'os' as os %}{{ os.system('id') }}",
    "{% include '/etc/passwd' %}",
    "{% extends '/etc/passwd' %}",
    "{% from 'subprocess' import run %}{{ run('id') }}",
    "{{ self.__init__.__globals__ }}",
    "{{ namespace.__init__ }}",
    "{{ messages.copy() }}{{ lipsum.__globals__ }}",
    "{{ tojson.func }}{{ config }}{{ request.application }}",
]
TOO_MUCH = {
    "ranges": "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
    "range": "{{ range(10 ** 9)|list }}",
    "repeat": "{{ 'a' * 10 ** 10 }}",
    "repeat list": "{{ [1] * 10 ** 9 }}",
    "power": "{{ 10 ** 10 ** 7 }}",
    "doubling": "{% set n = namespace(x='aaaaaaaaaa') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "adding": "{% set n = namespace(x='aaaaaaaaaa') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "center": "{{ 'a'|center(10 ** 10) }}",
    "center method": "{{ 'a'.center(10 ** 10) }}",
    "indent": "{{ 'a\nb'|indent(10 ** 9) }}",
    "format": "{{ '%0999999999d'|format(1) }}",
    "format method": "{{ '{:999999999d}'.format(1) }}",
    "format nested": "{{ '{:{}d}'.format(1, 10 ** 9) }}",
    "format built": "{{ ('{:9' ~ '99999999d}').format(1) }}",
    "format escaped": "{{ '{:9\\x3999999999d}'.format(1) }}",
    "format quotes": "{{ ('{:9' ~ '99999999d}' ~ \"'x'\") .format(1) }}",
    "batch": "{{ 'abc'|batch(10 ** 9, 'x')|list }}",
    "slice": "{{ [1]|slice(10 ** 9)|list }}",
    "replace": "{{ ('a' * 10000).replace('a', 'b' * 10000)|length }}",
    "macro": "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
    "output": "{% for i in range(100000) %}{{ messages[0].content * 1000 }}{% endfor %}",
    "json indent": "{{ messages|tojson(indent=10 ** 9) }}",
    "json separators": "{{ messages|tojson(separators=('a' * 100000, 'b')) }}",
    "json often": "{% for i in range(100000) %}{% set x = messages|tojson(indent=16) %}{% endfor %}",
    "json range": "{% set r = range(100000) %}{% for i in range(1000) %}{% set x = r|tojson %}{% endfor %}",
    "list growth": "{% for i in range(60) %}{{ messages.extend(messages) }}{% endfor %}",
    "unary": "{{ " + "-" * 100_000 + "1 }}",
    "chain": "{{ 1" + "+1" * 50_000 + " }}",
    "not": "{{ " + "not " * 50_000 + "1 }}",
    "brackets": "{{ " + "(" * 2_900 + "1" + ")" * 2_900 + " }}",
    "elif": "{% if 0 %}" + "{% elif 0 %}" * 20_000 + "{% endif %}",
    "elif under the limit": "{% if 0 %}" + "{% elif 0 %}" * 2_998 + "{% endif %}{{ 1 // 0 }}",
    "blocks": "{% if 1 %}" * 2_900,
    "size": "x" * (TEMPLATE_LIMIT + 1),
}


@pytest.mark.parametrize("template", RUNS_NOTHING)
def test_t01_nothing_is_run_or_read(template: str) -> None:
    text, code = "", "TEMPLATE_ERROR"
    try:
        text = render_chat(template, [USER])
    except RequestError as error:
        code = error.error_code
    assert code == "TEMPLATE_ERROR"
    assert not any(word in text for word in ("class", "root:", "uid=", "builtin", "module", "function", "0x"))


def test_t02_asking_for_too_much_is_refused_quickly_and_cheaply() -> None:
    """In a process of its own, so that memory can be measured and a crash is a failure of this test alone."""
    program = """
import json, resource, sys, time
from bestiary.api.errors import RequestError
from bestiary.serve.text.chat_template import render_chat
messages = [{"role": "user", "content": "hello"}]
render_chat("{{ messages|tojson }}", messages)
for name, template in json.load(sys.stdin).items():
    memory, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    try:
        code = render_chat(template, messages)[:100]
    except RequestError as error:
        code = error.error_code
    seconds = time.process_time() - start
    print(json.dumps([name, code, seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 1024]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], input=json.dumps(TOO_MUCH), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row[0] for row in rows] == list(TOO_MUCH)
    for name, code, seconds, megabytes in rows:
        assert code in ("TEMPLATE_LIMIT", "TEMPLATE_ERROR"), (name, code)
        assert seconds < 0.5, (name, seconds)
        assert megabytes < 64, (name, megabytes)


ATTACKS = {"TEMPLATE_ERROR": RUNS_NOTHING[4], "TEMPLATE_LIMIT": TOO_MUCH["ranges"]}


def in_configuration(template: str, folder: Path) -> str | None:
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    return in_directory(folder)


def in_a_list(template: str, folder: Path) -> str | None:
    named = [{"name": "rag", "template": "x"}, {"name": "default", "template": template}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    return in_directory(folder)


def in_a_file(template: str, folder: Path) -> str | None:
    (folder / "chat_template.jinja").write_text(template)
    return in_directory(folder)


def in_directory(folder: Path) -> str | None:
    byte_level().save(str(folder / "tokenizer.json"))
    return load_tokenizer(folder).chat_template


def in_gguf(template: str, folder: Path) -> str | None:
    return load_gguf_tokenizer(byte_level_metadata() | {"tokenizer.chat_template": template}).chat_template


def on_the_command_line(template: str, folder: Path) -> str | None:
    (folder / "mine.jinja").write_text(template)
    return read_template(folder / "mine.jinja")


SOURCES = [in_configuration, in_a_list, in_a_file, in_gguf, on_the_command_line]


@pytest.mark.parametrize("code", ATTACKS)
@pytest.mark.parametrize("place", SOURCES)
def test_t01_wherever_a_template_stands(place: Callable[[str, Path], str | None], code: str, tmp_path: Path) -> None:
    template = place(ATTACKS[code], tmp_path)
    assert template == ATTACKS[code]
    with pytest.raises(RequestError) as error:
        render_chat(template, [USER])
    assert error.value.error_code == code
