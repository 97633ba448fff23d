"""Which formats a model's answers are read with: by name, or as its chat template writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from bestiary.api.errors import UsageError
from bestiary.api.hook_manager import HookManager
from bestiary.api.text_formats import ReasoningFormat, ToolFormat
from bestiary.engine.notices import notice

from .formats import AnswerFormats
from .template_facts import Render, TemplateFacts, derived, left_over, reads, template_facts

AUTO, NONE = "auto", "none"


def choose_formats(
    hooks: HookManager,
    template: str | None,
    render: Render,
    *,
    tool_call_parser: str = AUTO,
    reasoning_parser: str = AUTO,
) -> AnswerFormats:
    """Choose, and say what was chosen.

    Args:
        template: the model's chat template; None: it has none. render: renders it (`template_facts.Render`).
        tool_call_parser, reasoning_parser: a name among the hooks', "auto", or "none".

    Raises:
        UsageError: nobody offers a parser of that name, or what is offered is none.
    """
    template = template or ""
    offered = hooks.all("tool_call_parsers")
    forms = {name: form for name, form in offered.items() if isinstance(form, ToolFormat)}
    facts = template_facts(render, forms.values()) if template else TemplateFacts(False, "object", ())
    thoughts = {name: form for name, form in hooks.all("reasoning_parsers").items() if _may_be_found(form)}
    tools = _chosen(hooks, "tool_call_parsers", tool_call_parser, lambda: _tools_of(template, facts, forms))
    reasoning = _chosen(hooks, "reasoning_parsers", reasoning_parser, lambda: _by_signs(template, thoughts))
    return AnswerFormats(tools, reasoning, facts.arguments, facts.shows_tools)


Choice: TypeAlias = "tuple[str, Any, str]"
"""Name, what it is, and why it."""


def _chosen(hooks: HookManager, kind: str, name: str, search: Callable[[], Choice | None]) -> Any:
    what, option = _SAID[kind]
    if name == NONE:
        notice(f"{what} stay text: {option} {NONE}")
        return None
    found = search() if name == AUTO else (name, hooks.get(kind, name), f"{option} {name}")
    if found is None:
        notice(f"{what} stay text: the chat template has none that is known ({option} NAME says how they are written)")
        return None
    name, value, why = found
    if not callable(value) and not isinstance(value, ToolFormat | ReasoningFormat):
        raise UsageError("neither a format nor a class of parsers", field=f"{kind}.{name}", value=type(value).__name__)
    notice(f"{what} are read as {name}: {why}")
    return value


_SAID = {
    "tool_call_parsers": ("tool calls", "--tool-call-parser"),
    "reasoning_parsers": ("thoughts", "--reasoning-parser"),
}


def _tools_of(template: str, facts: TemplateFacts, forms: Mapping[str, ToolFormat]) -> Choice | None:
    ranked = []
    for name, form in forms.items():
        read = [text for text, count in facts.written if reads(form, text, count)]
        if read:
            left = sum(left_over(form, text) for text in read)
            absent = sum(mark not in template for mark in form.opening)
            ranked.append((-len(read), left, not _is_signed(form, template), absent, name))
    if ranked:
        name = min(ranked)[-1]
        return name, forms[name], "so the chat template writes them"
    for form in derived(facts.written):
        if any(reads(form, *each) for each in facts.written):
            shown = f"{form.opening[0]}…{form.closing}"
            return "a format of its own", form, f"so the chat template writes them, {shown}"
    return _by_signs(template, forms)


def _by_signs(template: str, forms: Mapping[str, ToolFormat] | Mapping[str, ReasoningFormat]) -> Choice | None:
    ranked = []
    for name, form in forms.items():
        if _is_signed(form, template):
            signs = _signs(form)
            ranked.append((len(signs), sum(map(len, signs)), name))
    if not ranked:
        return None
    name = max(ranked)[-1]
    return name, forms[name], "its marks are in the chat template"


def _is_signed(form: ToolFormat | ReasoningFormat, template: str) -> bool:
    return bool(_signs(form)) and all(sign in template for sign in _signs(form))


def _signs(form: ToolFormat | ReasoningFormat) -> tuple[str, ...]:
    return form.signs or (form.opening if isinstance(form, ToolFormat) else form.closing)[:1]


def _may_be_found(form: object) -> bool:
    """A format that says of itself where an answer begins cannot be told from a template."""
    return isinstance(form, ReasoningFormat) and not form.inside
