"""A package brings a family's formats, or parsers of its own, and they are chosen like core's."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from bestiary.api.discovery import scan
from bestiary.api.errors import UsageError
from bestiary.api.hook_manager import HookManager
from bestiary.serve.text.chat_template import render_chat
from bestiary.serve.text.parsers.answer import parse_text
from bestiary.serve.text.parsers.choose import choose_formats
from bestiary.serve.text.parsers.families import HERMES
from bestiary.serve.text.parsers.formats import AnswerFormats
from bestiary.serve.text.tools import Tool
from bestiary.testing.fake_site import Site

TEMPLATE = (
    "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}"
    '=>{"fn": "{{ c.function.name }}", "with": {{ c.function.arguments|tojson }}}{% endfor %}{% endfor %}'
)
SOURCE = """
from bestiary.api.hooks import TextDelta, ToolCallDelta, hookimpl
from bestiary.api.text_formats import JsonCall, ToolFormat

ARROW = ToolFormat(opening=("=>",), call=JsonCall(name="fn", arguments=("with",)))

class Shout:
    def __init__(self, tools): self.tools = tools
    def feed(self, chunk): return TextDelta(chunk.upper())
    def finish(self): return TextDelta(tool_calls=(ToolCallDelta(0, next(iter(self.tools)), "{}"),))

class Muse:
    def __init__(self, prompt): self.prompt = prompt
    def feed(self, chunk): return TextDelta(reasoning=chunk) if self.prompt.endswith("?") else TextDelta(chunk)
    def finish(self): return TextDelta()

@hookimpl
def tool_call_parsers(): return {"arrow": "giver:ARROW", "shout": Shout, "wrong": 7}

@hookimpl
def reasoning_parsers(): return {"muse": "giver:Muse"}
"""


def chosen(hooks: HookManager, **names: str) -> AnswerFormats:
    def render(messages: Any, **variables: Any) -> str:
        return render_chat(TEMPLATE, messages, **variables)

    return choose_formats(hooks, TEMPLATE, render, **names)


def test_a_package_offers_a_format_and_a_class(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.add("giver", hooks={"any": "giver"}, source=SOURCE)
    hooks = HookManager(scan([str(site.root)])).load()
    with caplog.at_level(logging.WARNING):
        formats = chosen(hooks)
    assert caplog.messages[-2].startswith("tool calls are read as arrow: ")
    found = parse_text(formats.parser("", [Tool("f")]), 'so =>{"fn": "f", "with": {}}')
    assert (found.content, found.tool_calls[0].name) == ("so", "f")
    formats = chosen(hooks, tool_call_parser="shout", reasoning_parser="muse")
    found = parse_text(formats.parser("x", [Tool("f")]), "abc")
    assert (found.content, found.tool_calls[0].name) == ("ABC", "f")
    assert parse_text(formats.parser("x?", [Tool("f")]), "abc").reasoning == "abc"
    assert formats.forced == HERMES
    with pytest.raises(UsageError, match="neither a format nor a class"):
        chosen(hooks, tool_call_parser="wrong")
