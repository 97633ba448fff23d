"""Files of a model directory, read as bounded data: regular files only, never more than a stated number of bytes."""

from __future__ import annotations

import json
import stat
from pathlib import Path

from bestiary.api.errors import ConfigError

CONFIG_LIMIT = 16 * 2**20
"""Bytes of a config-like file (`config.json`, `tokenizer_config.json`, a chat template …)."""

TOKENIZER_LIMIT = 256 * 2**20
"""Bytes of `tokenizer.json`, `vocab.json` or `merges.txt`; the largest in use have about 40 MiB."""


def read_text(path: Path, limit: int = CONFIG_LIMIT) -> str | None:
    """The file as UTF-8 text, or None where there is no such file."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{path.name} cannot be read: {error.strerror}", field=path.name) from error
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError(f"{path.name} is not a regular file", field=path.name)
    try:
        with path.open("rb") as stream:
            data = stream.read(limit + 1)
    except OSError as error:
        raise ConfigError(f"{path.name} cannot be read: {error.strerror}", field=path.name) from error
    if len(data) > limit:
        raise ConfigError(f"{path.name} is too large", field=path.name, limit=f"≤ {limit} bytes", value=status.st_size)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path.name} is not UTF-8 text (byte {error.start})", field=path.name) from error


def read_json(path: Path, limit: int = CONFIG_LIMIT) -> dict[str, object]:
    """The file's JSON object; empty where there is no such file."""
    text = read_text(path, limit)
    if text is None:
        return {}
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path.name} is not valid JSON: {error}", field=path.name) from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path.name} does not hold a JSON object", field=path.name, value=type(data).__name__)
    return data
