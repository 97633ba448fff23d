"""The sampling parameters of a conversation, which /set changes between answers."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import click

from bestiary.api.errors import UsageError
from bestiary.api.sampling import SamplingParams
from bestiary.serve.cli.config_values import from_text
from bestiary.serve.cli.options import SamplingOption
from bestiary.serve.cli.settings import key_of
from bestiary.serve.cli.streaming import is_given


class SamplingChoice:
    """Attributes:
    params: those in force. default_length: nobody asked for `max_tokens`, so it gives way to the context.
    """

    def __init__(
        self, params: SamplingParams, options: Mapping[str, click.Option] | None = None, *, default_length: bool = False
    ) -> None:
        self.params, self.default_length = params, default_length
        self._options = options or {}

    @classmethod
    def of_command(cls, ctx: click.Context, params: SamplingParams) -> SamplingChoice:
        """With the options of a running command: their names, kinds and ranges hold for /set too."""
        asked = [each for each in ctx.command.params if isinstance(each, click.Option)]
        options = {key_of(each): each for each in asked if isinstance(each, SamplingOption) or each.name == "seed"}
        return cls(params, options, default_length=not is_given(ctx, "max_tokens"))

    @property
    def names(self) -> list[str]:
        return list(self._options)

    def rows(self) -> Iterator[tuple[str, Any]]:
        """Name and value of each parameter."""
        for name, option in self._options.items():
            yield name, getattr(self.params, str(option.name))

    def set(self, name: str, text: str) -> Any:
        """Change one parameter and return its value; "none" stands for none.

        Raises:
            UsageError: there is no such parameter. click.BadParameter, RequestError: it cannot have this value.
        """
        key = name.lstrip("-").replace("-", "_")
        option = self._options.get(key)
        if option is None:
            near = difflib.get_close_matches(key, self._options, 1)
            raise UsageError(
                f"there is no parameter {name[:64]!r}",
                limit=f"did you mean {near[0]}?" if near else ", ".join(self._options),
            )
        value: Any = None
        if text.lower() != "none":
            value = option.type_cast_value(click.get_current_context(), from_text(option, text, key))
        self.params = replace(self.params, **{str(option.name): value})
        self.default_length = self.default_length and key != "max_tokens"
        return getattr(self.params, str(option.name))
