"""Values of options as files and the environment write them. Nothing is bent: a value of another kind is an error."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import click

from bestiary.api.errors import UsageError

from .kinds import JSON_OBJECT, MEMORY, NUMBERS, PAIR, Kind


def from_file(option: click.Option, value: Any, key: str, where: str) -> Any:
    """A value of TOML as click takes it; tables of pairs become pairs.

    Raises:
        UsageError: it is of another kind than the option; ranges and choices are click's to check.
    """
    rule = _rule(option)
    if not _FITS[rule](value):
        raise UsageError(f"{where}: {key} is of the wrong kind", field=key, value=value, limit=rule)
    return list(value.items()) if rule == _PAIRS else value


def from_text(option: click.Option, text: str, name: str) -> Any:
    """A value of the environment. Pairs are ``A=x,B=y``; of a list, one text, or a JSON list of them.

    Raises:
        UsageError: what begins like a JSON list is none.
    """
    if not option.multiple:
        return text
    if option.type is PAIR:
        return [part for part in text.split(",") if part.strip()]
    if not text.lstrip().startswith("["):
        return [text]
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not _is_texts(found):
        raise UsageError(f"{name} is no list of texts", field=name, value=text, limit='one text, or ["one", "two"]')
    return found


_PAIRS, _TEXTS, _FLAG, _WHOLE, _NUMBER, _SIZE, _OBJECT, _WHOLES, _TEXT = (
    "a table of texts", "a list of texts", "true or false", "a whole number", "a number",
    'bytes, or text such as "2G"', "a table", "a list of whole numbers", "text",
)  # fmt: skip


def _rule(option: click.Option) -> str:
    if option.multiple:
        return _PAIRS if option.type is PAIR else _TEXTS
    if option.is_flag or isinstance(option.type, click.types.BoolParamType):
        return _FLAG
    if isinstance(option.type, click.types.IntParamType):
        return _WHOLE
    if isinstance(option.type, click.types.FloatParamType):
        return _NUMBER
    special: dict[Kind, str] = {MEMORY: _SIZE, JSON_OBJECT: _OBJECT, NUMBERS: _WHOLES}
    return special.get(option.type, _TEXT)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _is_json(value: Any) -> bool:
    """TOML has dates, which JSON has not."""
    if isinstance(value, dict):
        return all(_is_json(each) for each in value.values())
    return all(_is_json(each) for each in value) if isinstance(value, list) else isinstance(value, str | int | float)


_FITS: dict[str, Callable[[Any], bool]] = {
    _PAIRS: lambda value: isinstance(value, dict) and all(isinstance(each, str) for each in value.values()),
    _TEXTS: _is_texts,
    _FLAG: lambda value: isinstance(value, bool),
    _WHOLE: _is_whole,
    _NUMBER: lambda value: _is_whole(value) or isinstance(value, float),
    _SIZE: lambda value: _is_whole(value) or isinstance(value, str),
    _OBJECT: lambda value: isinstance(value, dict) and _is_json(value),
    _WHOLES: lambda value: isinstance(value, list) and all(_is_whole(each) for each in value),
    _TEXT: lambda value: isinstance(value, str),
}
