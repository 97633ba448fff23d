"""Names that files import beside what they use: classes that can be derived from and asked about, and not be used."""

from __future__ import annotations

from typing import Any, NoReturn

from bestiary.api.errors import ConfigError


def absent(path: str, reason: str) -> type:
    """A class for the symbol ``module:name``; making one, or calling the function that it stands for, is an error."""

    def refuse(cls: type, *arguments: Any, **options: Any) -> NoReturn:
        raise ConfigError(
            f"{path} is not there in bestiary-vllm: {reason}", code="UNSUPPORTED_LAYER", field=path,
        )  # fmt: skip

    module, _, name = path.partition(":")
    return type(name, (), {"__new__": refuse, "__module__": module, "__doc__": f"Not there: {reason}."})
