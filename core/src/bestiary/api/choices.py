"""The user's say when two distributions offer the same name: ``NAME=distribution``.

Three places, the first that speaks of a name wins: the argument (`--plugin LlamaForCausalLM=bestiary-llama`), the
environment (``BESTIARY_PLUGINS="A=x,B=y"``), the table ``[plugins]`` of the configuration file (``$BESTIARY_CONFIG``,
else ``bestiary/config.toml`` under ``$XDG_CONFIG_HOME`` or ``~/.config``). Names of hooks are written ``kind.name=…``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from .discovery import normalise
from .errors import UsageError

ENVIRONMENT = "BESTIARY_PLUGINS"
CONFIG = "BESTIARY_CONFIG"


def parse(pairs: Iterable[str], source: str) -> dict[str, str]:
    """``["Name=dist"]`` → ``{"Name": "dist"}``, distributions normalised."""
    chosen: dict[str, str] = {}
    for pair in pairs:
        name, separator, distribution = (part.strip() for part in pair.partition("="))
        if not (name and separator and distribution):
            raise UsageError(f"{source}: not NAME=distribution", field=source, value=pair, limit="NAME=distribution")
        chosen[name] = normalise(distribution)
    return chosen


def current(arguments: Iterable[str] | Mapping[str, str] = ()) -> dict[str, str]:
    """All choices in force, the strongest place winning."""
    if isinstance(arguments, Mapping):
        arguments = [f"{name}={distribution}" for name, distribution in arguments.items()]
    environment = [part for part in os.environ.get(ENVIRONMENT, "").split(",") if part.strip()]
    return _from_file() | parse(environment, ENVIRONMENT) | parse(arguments, "--plugin")


def config_path() -> Path:
    explicit = os.environ.get(CONFIG)
    if explicit:
        return Path(explicit)
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return Path(base) / "bestiary" / "config.toml"


def _from_file() -> dict[str, str]:
    path = config_path()
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        if os.environ.get(CONFIG):
            raise UsageError(f"{CONFIG} names a file that does not exist", field=CONFIG, value=str(path)) from None
        return {}
    except OSError as error:
        raise UsageError(f"the configuration file cannot be read: {error.strerror}", value=str(path)) from error
    import tomllib

    try:
        table = tomllib.loads(data.decode()).get("plugins", {})
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"the configuration file is not TOML: {error}", field=CONFIG, value=str(path)) from error
    if not isinstance(table, dict) or not all(isinstance(value, str) for value in table.values()):
        raise UsageError("[plugins] must map names to distributions", field="plugins", value=str(path))
    return parse((f"{name}={distribution}" for name, distribution in table.items()), str(path))
