"""Templates that crash or hang the renderer end in an error, and the next conversation is rendered as ever."""

from __future__ import annotations

import sys
from types import MappingProxyType

import psutil
import pytest

from bestiary.api.errors import RequestError
from bestiary.serve.text.chat_template import check_variables, render_chat
from bestiary.serve.text.template_process import TemplateProcess

PLAIN = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{{ bos_token }}{{ tools|tojson }}"
MESSAGES = [{"role": "user", "content": "hällo"}]
TOO_MUCH = {
    "a namespace in itself": "{% set n=namespace() %}{% set n.x=n %}{{ n }}",
    "its JSON": "{% set n=namespace() %}{% set n.x=[n] %}{{ n.x|tojson }}",
    "doubling": "{% set n=namespace(x=[1]) %}{% for i in range(40) %}{% set n.x=n.x+n.x %}{% endfor %}{{ n.x|length }}",
    "slices": "{% set n=namespace(x=[1]) %}{% for i in range(30000) %}{% set n.x=n.x[:] %}{% endfor %}{{ n.x|length }}",
}


@pytest.fixture(scope="module")
def process() -> TemplateProcess:
    return TemplateProcess()


def test_it_renders_what_render_chat_renders(process: TemplateProcess) -> None:
    options = {"bos_token": "<s>", "eos_token": "", "add_generation_prompt": True, "tools": [{"f": 1.0}]}
    assert process.render(PLAIN, MESSAGES, **options) == render_chat(PLAIN, MESSAGES, **options)  # type: ignore[arg-type]
    assert process.render(PLAIN, tuple(map(MappingProxyType, MESSAGES))) == render_chat(PLAIN, MESSAGES)


@pytest.mark.parametrize("name", TOO_MUCH)
def test_what_crashes_or_hangs_is_an_error_and_no_more(process: TemplateProcess, name: str) -> None:
    with pytest.raises(RequestError) as caught:
        process.render(TOO_MUCH[name], MESSAGES)
    assert caught.value.error_code in ("TEMPLATE_LIMIT", "TEMPLATE_ERROR")
    assert process.render("{{ messages[0].content }}", MESSAGES) == "hällo"


def test_t02_the_processor_is_lent_for_a_moment_however_long_the_deadline_is() -> None:
    with pytest.raises(RequestError, match=r"computed for longer than 0\.05 s"):
        TemplateProcess(deadline_s=60.0, cpu_s=0.05).render(TOO_MUCH["slices"], MESSAGES)


@pytest.mark.parametrize("text", ["a" * 8_000_000, "🦁" * 2_000_000])
def test_t02_memory_is_for_what_was_sent_and_not_for_what_a_template_makes(process: TemplateProcess, text: str) -> None:
    with pytest.raises(RequestError, match="crashed"):
        process.render("{{ 'a'.join(['b' * 100000] * 1000)|length }}", MESSAGES)
    assert text in TemplateProcess(deadline_s=60.0, cpu_s=20.0).render(PLAIN, [{"role": "user", "content": text}])


def test_errors_are_those_of_render_chat(process: TemplateProcess) -> None:
    for template, messages in (
        ("{{ raise_exception('no') }}", MESSAGES), ("{{ 1 +", MESSAGES), (PLAIN, [{"content": "x"}]),
    ):  # fmt: skip
        with pytest.raises(RequestError) as here:
            render_chat(template, messages)
        with pytest.raises(RequestError) as there:
            process.render(template, messages)
        assert (there.value.error_code, there.value.message) == (here.value.error_code, here.value.message)
    with pytest.raises(RequestError, match="not plain data"):
        process.render(PLAIN, [{"role": "user", "content": object()}])


@pytest.mark.parametrize(
    ("variables", "code"),
    [
        *(
            ({name: []}, "NOT_ALLOWED")
            for name in ("messages", "tools", "tokenize", "chat_template", "raise_exception")
        ),
        ({"add_generation_prompt": False}, "NOT_ALLOWED"),
        ({"template": "x"}, "NOT_ALLOWED"),
        ({"__class__": 1}, "NOT_ALLOWED"),
        ({str(number): 1 for number in range(33)}, "TEMPLATE_LIMIT"),
        ({str(number): 1 for number in range(10**6)}, "TEMPLATE_LIMIT"),
        ({"x" * 20_000: 1}, "TEMPLATE_LIMIT"),
        ({"x": [{"y": "z" * 20_000}]}, "TEMPLATE_LIMIT"),
        ({"documents": ["x" * 20_000]}, "TEMPLATE_LIMIT"),
        ({"x": object()}, "BAD_MESSAGES"),
    ],
)
def test_t04_what_a_caller_adds_to_a_template_is_little_and_not_ours(variables: dict[str, object], code: str) -> None:
    with pytest.raises(RequestError) as caught:
        check_variables(variables)
    assert caught.value.error_code == code
    check_variables({"enable_thinking": True, "documents": ["a"]})


def test_the_child_ends_with_its_owner() -> None:
    process = TemplateProcess()
    assert process.pid is None
    process.render("x", MESSAGES)
    child = psutil.Process(process.pid)
    assert child.cmdline()[0] == sys.executable and "bestiary.serve.text.template_process" in child.cmdline()
    process.close()
    assert process.pid is None and not child.is_running()
