"""Messages to prompt text, by the checkpoint's own Jinja template.

A template is a program somebody else wrote. It is rendered by minijinja, which has no way to Python, to files or to
other templates, and on a ration of fuel that also pays for the bytes it produces. The dialect is the one that
checkpoints are written for: Jinja2 with transformers' settings and helpers.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn

from bestiary.api.errors import RequestError

from .messages import check_messages, plain

if TYPE_CHECKING:
    import minijinja

TEMPLATE_LIMIT = 256 * 2**10
"""Characters of a template; the longest in use have about 30,000."""

OUTPUT_LIMIT = 8 * 2**20
"""Characters of a rendered prompt, and of all that `tojson` writes in one rendering."""

_OPERATOR_LIMIT = 3_000
_FUEL, _FUEL_PER_MESSAGE = 300_000, 500
_FUEL_LIMIT = 3_000_000
_RESERVED = frozenset(
    {
        *("messages", "tools", "add_generation_prompt", "bos_token", "eos_token", "raise_exception"),
        *("template", "chat_template", "tokenize", "strftime_now"),
    }
)
_VARIABLES, _VARIABLE_CHARS = 32, 16 * 2**10

# What nests without brackets: each occurrence may be one level of the syntax tree, whose walk uses the C stack.
_NESTING = re.compile(r"[-+*/~|.(\[]|(?<!\{)%(?!\})|\b(?:not|and|or|is|if|else|elif)\b")
_LOOKS_AT_PARTS = re.compile(r"""\.\s*(?:type|text)\b|\[\s*(['"])(?:type|text)\1\s*\]""")
_GENERATION = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")

# str.format pays no fuel for the width of a field, so only literals without wide or computed fields may use it.
_FORMAT_CALL = re.compile(r"\.\s*format\s*\(")
_SAFE_FORMAT_CALL = re.compile(r"""(?:"(?:(?!\d{3}|\{[^}"]*\{)[^"\\])*"|'(?:(?!\d{3}|\{[^}']*\{)[^'\\])*')\.format\(""")


def render_chat(
    template: str,
    messages: Sequence[Mapping[str, object]],
    *,
    add_generation_prompt: bool = True,
    tools: Sequence[Mapping[str, object]] | None = None,
    bos_token: str = "",
    eos_token: str = "",
    **kwargs: object,
) -> str:
    """The prompt for `messages`, each a mapping with a `role` and, mostly, a `content`.

    `kwargs` are further variables of the template (`enable_thinking`, `unk_token`, `documents` …); all values are plain
    data as in JSON. The result already holds BOS where the template writes it: encode it with
    `add_special_tokens=False`.

    A content may be a list of text parts (``{"type": "text", "text": …}``). A template that looks at parts itself gets
    the list; for any other the texts are joined, a line each.

    Raises `RequestError`: `BAD_MESSAGES` for what is no list of messages, `UNSUPPORTED_INPUT` for a part that is no
    text, `TEMPLATE_ERROR` where the template is wrong or refuses the messages (`raise_exception`), `TEMPLATE_LIMIT`
    where it asks for too much.
    """
    _check_template(template)
    check_variables(kwargs)
    context = {
        **{name: plain(value, name) for name, value in kwargs.items()},
        "messages": check_messages(messages, join_parts=_LOOKS_AT_PARTS.search(template) is None),
        "tools": None if tools is None else plain(list(tools), "tools"),
        "add_generation_prompt": add_generation_prompt,
        "bos_token": bos_token,
        "eos_token": eos_token,
    }
    text = _render(template, context)
    if len(text) > OUTPUT_LIMIT:
        raise _limit_error("the prompt is too long", limit=f"≤ {OUTPUT_LIMIT} characters", value=len(text))
    return text


def check_variables(variables: Mapping[str, object]) -> None:
    """What a caller adds to a template's variables: not in place of ours, and little.

    Raises:
        RequestError: NOT_ALLOWED for a reserved name, TEMPLATE_LIMIT for more than 32 names or 16 KiB.
    """
    field, limit = "chat_template_kwargs", f"at most {_VARIABLES} names and {_VARIABLE_CHARS} characters"
    if len(variables) > _VARIABLES:
        raise RequestError("too many variables", code="TEMPLATE_LIMIT", field=field, limit=limit, value=len(variables))
    reserved = sorted(name for name in variables if name in _RESERVED or str(name).startswith("__"))
    if reserved:
        raise RequestError("a reserved name of the chat template", code="NOT_ALLOWED", field=field, value=reserved[0])
    characters = sum(map(len, variables)) + sum(len(text) for text in _strings(plain(variables, field)))
    if characters > _VARIABLE_CHARS:
        raise RequestError("too long variables", code="TEMPLATE_LIMIT", field=field, limit=limit, value=characters)


def _render(template: str, context: dict[str, object]) -> str:
    from minijinja import TemplateError

    try:
        return str(_environment(_fuel(context)).render_str(_without_generation_tags(template), "chat", **context))
    except _Refused as error:
        raise RequestError(f"the chat template refuses: {error}", code="TEMPLATE_ERROR", field="messages") from None
    except _TooMuch as error:
        raise _limit_error(str(error)) from None
    except TemplateError as error:
        if error.kind == "OutOfFuel" or "recursion limit" in error.message or "too many elements" in error.message:
            raise _limit_error(f"the chat template does too much: {_described(error)}") from None
        raise RequestError(
            f"the chat template fails: {_described(error)}", code="TEMPLATE_ERROR", field="chat_template"
        ) from None
    except (TypeError, ValueError, KeyError, AttributeError, IndexError, OverflowError) as error:
        # from a Python value's own method (`messages.append()`, `message.pop('x')`), or a helper called wrongly
        raise RequestError(f"the chat template fails: {error}", code="TEMPLATE_ERROR", field="chat_template") from None


def _described(error: minijinja.TemplateError) -> str:
    return f"{error.message} (line {error.line})" if error.line else error.message


def _limit_error(message: str, *, limit: object = None, value: object = None) -> RequestError:
    return RequestError(message, code="TEMPLATE_LIMIT", field="chat_template", limit=limit, value=value)


# ---------------------------------------------------------------------------------------------- what goes in


def _check_template(template: str) -> None:
    if len(template) > TEMPLATE_LIMIT:
        raise _limit_error("the chat template is too long", limit=f"≤ {TEMPLATE_LIMIT} characters", value=len(template))
    nesting = sum(1 for _ in _NESTING.finditer(template))
    if nesting > _OPERATOR_LIMIT:
        raise _limit_error(
            "the chat template is too complicated", limit=f"≤ {_OPERATOR_LIMIT} operators", value=nesting
        )
    if len(_FORMAT_CALL.findall(template)) != len(_SAFE_FORMAT_CALL.findall(template)):
        raise _limit_error("the chat template calls .format() on more than a short literal", limit="fields < 100 wide")


def _without_generation_tags(template: str) -> str:
    """``{% generation %}`` marks the assistant's words for training; in a prompt it only groups."""
    return _GENERATION.sub(lambda tag: f"{{%{tag[1]} {'endif' if tag[2] else 'if true'} {tag[3]}%}}", template)


def _fuel(context: Mapping[str, object]) -> int:
    """A ration that grows with the messages, within a limit that keeps a rendering under half a second."""
    messages = context["messages"]
    count = len(messages) if isinstance(messages, list) else 0
    characters = sum(len(value) for value in _strings(context))
    return min(_FUEL + _FUEL_PER_MESSAGE * count + characters // 4, _FUEL_LIMIT)


def _strings(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return [text for item in items for text in _strings(item)]


# ---------------------------------------------------------------------------------- the dialect of checkpoints


class _Refused(Exception):
    """The template called `raise_exception`."""


class _TooMuch(Exception):
    """A helper was asked for more than its limit."""


def _environment(fuel: int) -> minijinja.Environment:
    """A fresh environment per rendering: cheap (tens of microseconds), and `tojson` counts what it has written."""
    from minijinja import Environment

    return Environment(
        fuel=fuel,
        debug=False,
        pycompat=True,
        undefined_behavior="lenient",
        trim_blocks=True,
        lstrip_blocks=True,
        auto_escape_callback=_never,
        filters={"tojson": functools.partial(_tojson, _Budget()), "wordcount": _wordcount},
        tests={"callable": _never},
        globals={"raise_exception": _raise_exception, "strftime_now": _strftime_now},
    )


class _Budget:
    def __init__(self) -> None:
        self.left = OUTPUT_LIMIT

    def spend(self, characters: int) -> None:
        self.left -= characters
        if self.left < 0:
            raise _TooMuch("the chat template writes too much JSON")


def _tojson(
    budget: _Budget,
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Sequence[str] | None = None,
    sort_keys: bool = False,
) -> str:
    """`json.dumps` as transformers calls it: no HTML escapes, letters stay letters.

    minijinja hands a whole float that the template took out of its container over as an integer: ``1.0|tojson`` is
    ``1``, while ``{"x": 1.0}`` from the messages or tools is written as it is.
    """
    if indent is not None and not 0 <= indent <= 16:
        raise _TooMuch("tojson's indent is at most 16")
    if separators is not None and max(map(len, separators)) > 16:
        raise _TooMuch("tojson's separators are at most 16 characters")
    pair = None if separators is None else (separators[0], separators[1])
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=pair, sort_keys=sort_keys)
    budget.spend(len(text) + 500)  # a call has its price, however little it writes
    return text


def _wordcount(value: str) -> int:
    return len(re.findall(r"\w+", value))


def _never(_: object) -> bool:
    return False


def _raise_exception(message: object) -> NoReturn:
    raise _Refused(str(message)[:500])


def _strftime_now(layout: str) -> str:
    if len(layout) > 100:
        raise _TooMuch("strftime_now's format is at most 100 characters")
    return datetime.datetime.now().strftime(layout)
