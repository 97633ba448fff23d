"""T rows: what a request brings to the chat template, or brings as one, to a server that allows it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .row import ANSWER, CHAT, FINE, HI, TOKENS, Row, chat, encoded

SECONDS = 1.5
"""How long a template may compute, and one more."""
ERROR, LIMIT, FORBIDDEN = (400, "TEMPLATE_ERROR"), (400, "TEMPLATE_LIMIT"), (400, "NOT_ALLOWED")
INJECTIONS = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ messages.__class__.__base__.__subclasses__() }}",
    "{{ messages[0].__class__.__init__.__globals__ }}", "{{ messages|attr('__class__')|attr('__mro__')|list }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}", "{{ joiner.__init__.__globals__ }}",
    "{{ namespace.__init__.__globals__['os'] }}", "{{ lipsum.__globals__.os.system('id') }}",
    "{{ self.__init__.__globals__ }}", "{{ request.application.__globals__ }}", "{{ config.items() }}",
    "{{ '{0.__class__.__mro__}'.format(messages) }}", "{% import 'os' as os %}{{ os.system('id') }}",
    "{% include '/etc/passwd' %}", "{% extends 'x' %}", "{% from 'os' import system %}{{ system('id') }}",
    "{{ raise_exception.__globals__ }}", "{{ strftime_now.__globals__ }}", "{{ tojson.func.__globals__ }}",
    "{{ messages.append(messages) }}", "{{ messages[0].pop('content') }}", "{{ messages[0].clear() }}",
    "{{ raise_exception('no') }}", "{{ 1 +", "{% for %}", "{{ nothing() }}", "{{ messages|nofilter }}", "{{ 1 / 0 }}",
    "{{ 'a'|int.real }}", "{{ open('/etc/passwd').read() }}", "{{ eval('1') }}", "{{ __import__('os') }}",
]  # fmt: skip
BOMBS = [
    "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}", "{{ range(10 ** 9)|list }}",
    "{{ 'a' * 10 ** 10 }}", "{{ 10 ** 10 ** 7 }}", "{{ 'x'.center(10 ** 10) }}", "{{ 'x'|center(10 ** 10) }}",
    "{% set n = namespace(x='aaaaaaaaaa') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
    "{% set n = namespace(x='aaaaaaaaaa') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}",
    "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}", "{{ '%99999999999d'|format(1) }}",
    "{{ '{:>99999999}'.format(1) }}", "{% set n=namespace() %}{% set n.x=n %}{{ n }}",
    "{% set n=namespace() %}{% set n.x=[n] %}{{ n.x|tojson }}", "{{ messages|tojson(indent=10**9) }}",
    "{% set n=namespace(x=[1]) %}{% for i in range(40) %}{% set n.x=n.x+n.x %}{% endfor %}{{ n.x|length }}",
    "{% for i in range(100000) %}{{ messages[0].content * 1000 }}{% endfor %}", "{{ " + "(" * 5000 + ")" * 5000 + " }}",
    "{% if 1 %}" * 3000 + "{% endif %}" * 3000, "{{ " + "-" * 50_000 + "1 }}", "x" * 300_000,
    "{{ strftime_now('%A' * 1000) }}", "{{ messages[0].content|replace('', 'x' * 10 ** 9) }}",
    "{% for i in range(100000) %}{% set x = messages|tojson(indent=16) %}{% endfor %}",
    "{{ 'a'.join(['b' * 100000] * 100000) }}", "{{ 'a'|indent(10 ** 9) }}",
]  # fmt: skip
ENDPOINTS: list[tuple[str, dict[str, Any]]] = [(CHAT, chat()), (TOKENS, {"messages": HI})]


def rows() -> Iterator[Row]:
    for path, body in ENDPOINTS:
        for template in INJECTIONS:
            outcomes = (ERROR, LIMIT, (400, "EMPTY_PROMPT"), FINE)
            yield _row("T01", path, body | {"chat_template": template}, *outcomes)
        for template in BOMBS if path == CHAT else BOMBS[:2]:
            yield _row("T02", path, body | {"chat_template": template}, LIMIT, ERROR)
        yield from _variables(path, body)
    yield from _continued()
    for wrong in (7, [], {}, True):
        yield _row("T03", CHAT, chat(chat_template=wrong), (400, "BAD_REQUEST"))


def _variables(path: str, body: dict[str, Any]) -> Iterator[Row]:
    for name in ("tokenize", "chat_template", "messages", "tools", "template", "bos_token", "eos_token",
                 "raise_exception", "strftime_now", "add_generation_prompt", "__class__", "__init__"):  # fmt: skip
        yield _row("T04", path, body | {"chat_template_kwargs": {name: 1}}, FORBIDDEN)
    for many in ({f"a{n}": 1 for n in range(33)}, {f"a{n}": 1 for n in range(30_000)}, {"a": "x" * 20_000},
                 {"a": [{"b": "x" * 20_000}]}, {"x" * 20_000: 1}):  # fmt: skip
        yield _row("T04", path, body | {"chat_template_kwargs": many}, LIMIT)
    for wrong in ([], "x", 7, True):
        yield _row("T04", path, body | {"chat_template_kwargs": wrong}, (400, "BAD_REQUEST"))


def _continued() -> Iterator[Row]:
    bad = (400, "BAD_MESSAGES")
    yield _row("R16", CHAT, chat(continue_final_message=True), bad)
    empty = [*HI, {"role": "assistant", "content": " "}]
    yield _row("R16", CHAT, chat(messages=empty, continue_final_message=True), bad)
    both = chat(messages=[*HI, {"role": "assistant", "content": "a"}], continue_final_message=True)
    yield _row("R16", CHAT, both | {"add_generation_prompt": True}, (400, "BAD_REQUEST"))
    yield _row("T03", ANSWER, {"input": "x", "chat_template": "{{ 1 }}", "max_output_tokens": 2}, FINE)


def _row(id_: str, path: str, body: dict[str, Any], *outcomes: tuple[int, str | None]) -> Row:
    return Row(id=id_, path=path, body=encoded(body), outcomes=outcomes, seconds=SECONDS)
