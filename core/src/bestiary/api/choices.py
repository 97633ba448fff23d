"""The user's say when two distributions offer the same name: ``NAME=distribution``.

Three places, the first that speaks of a name wins: the argument (`--plugin LlamaForCausalLM=bestiary-llama`), the
environment (``BESTIARY_PLUGINS="A=x,B=y"``), the table ``[plugins]`` of the configuration file (``$BESTIARY_CONFIG``,
else ``bestiary/config.toml`` under ``$XDG_CONFIG_HOME`` or ``~/.config``). Names of hooks are written ``kind.name=…``.
Whether kernels of other packages than core are used at all: the argument `kernels`, else ``BESTIARY_KERNELS``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .distributions import normalise
from .errors import UsageError

ENVIRONMENT = "BESTIARY_PLUGINS"
CONFIG = "BESTIARY_CONFIG"
KERNELS = "BESTIARY_KERNELS"
_MAX_BYTES = 2**20


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
    return _from_file() | from_environment() | parse(arguments, "--plugin")


def from_environment() -> dict[str, str]:
    """The choices of ``BESTIARY_PLUGINS``."""
    return parse((part for part in os.environ.get(ENVIRONMENT, "").split(",") if part.strip()), ENVIRONMENT)


def config_path() -> Path:
    explicit = os.environ.get(CONFIG)
    if explicit:
        return Path(explicit)
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return Path(base) / "bestiary" / "config.toml"


def read_toml(path: Path) -> dict[str, Any]:
    """A configuration file as data.

    Raises:
        UsageError: it cannot be read, is too large or not TOML; with the line.
    """
    import tomllib

    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(
            f"the configuration file cannot be read: {error.strerror}", field=CONFIG, value=str(path)
        ) from error
    if len(data) > _MAX_BYTES:
        raise UsageError("the configuration file is too large", value=str(path), limit=f"{_MAX_BYTES} bytes")
    try:
        return tomllib.loads(data.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"the configuration file is not TOML: {error}", field=CONFIG, value=str(path)) from error


def plugins_of(data: Mapping[str, Any], path: str) -> dict[str, str]:
    """The table ``[plugins]`` of a configuration file. Raises `UsageError`: it is something else."""
    table = data.get("plugins", {})
    if not isinstance(table, dict) or not all(isinstance(value, str) for value in table.values()):
        raise UsageError("[plugins] must map names to distributions", field="plugins", value=path)
    return parse((f"{name}={distribution}" for name, distribution in table.items()), path)


def kernels(wanted: str | None) -> str:
    """ "auto" or "torch": as `wanted`, else as ``BESTIARY_KERNELS`` says. Raises `UsageError` for anything else."""
    source, value = ("kernels", wanted) if wanted else (KERNELS, os.environ.get(KERNELS) or "auto")
    if value not in ("auto", "torch"):
        raise UsageError("there are no such kernels", field=source, value=value, limit="auto or torch")
    return value


def _from_file() -> dict[str, str]:
    path = config_path()
    if not os.environ.get(CONFIG) and not path.is_file():
        return {}
    return plugins_of(read_toml(path), str(path))
