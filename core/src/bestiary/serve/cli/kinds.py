"""Kinds of option values that click does not have: sizes of memory, JSON objects, pairs, lists of numbers."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    Kind = click.ParamType[Any, Any]
else:
    Kind = click.ParamType  # generic in new versions of click only

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = re.compile(r"(\d{1,18}(?:\.\d{1,6})?)\s*([KMGT]?)(?:iB|B)?", re.IGNORECASE)


class Memory(Kind):
    """``1000000``, ``512M``, ``1.5GiB`` → bytes; units are powers of 1024."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = _SIZE.fullmatch(str(value).strip())
        if match is None:
            self.fail(f"{str(value)[:64]!r} is no size: write bytes, or 512M, 2G", param, ctx)
        return (
            int(float(match[1]) * _UNITS[match[2].upper()])
            if "." in match[1]
            else int(match[1]) * _UNITS[match[2].upper()]
        )


class JsonObject(Kind):
    """``{"name": value}`` → a dictionary."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        if isinstance(value, dict):
            return value
        try:
            found = json.loads(value)
        except (ValueError, RecursionError) as error:
            self.fail(f"not JSON: {error}", param, ctx)
        if not isinstance(found, dict):
            self.fail('not a JSON object, such as {"num_hidden_layers": 4}', param, ctx)
        return found


class Pair(Kind):
    """``NAME=VALUE`` → (name, value)."""

    name = "pair"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        left, separator, right = (part.strip() for part in str(value).partition("="))
        if not (left and separator and right):
            self.fail(f"{str(value)[:64]!r} is not NAME=VALUE", param, ctx)
        return left, right


class Numbers(Kind):
    """``10,12,10`` → a list of whole numbers."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        if isinstance(value, list):
            return value
        parts = [part.strip() for part in str(value).split(",")]
        if not all(re.fullmatch(r"\d{1,9}", part, re.ASCII) for part in parts):
            self.fail(f"{str(value)[:64]!r} is no list of numbers, such as 10,12,10", param, ctx)
        return [int(part) for part in parts]


MEMORY, JSON_OBJECT, PAIR, NUMBERS = Memory(), JsonObject(), Pair(), Numbers()
