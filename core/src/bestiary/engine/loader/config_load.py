"""`load_config`: a model's configuration as checked data, from `config.json` or GGUF metadata, overrides applied."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from bestiary.api.errors import ConfigError, UsageError

from .config_check import NAMES_CODE, CheckedConfig, check_config
from .config_json import MAX_DEPTH, read_json
from .source import ModelSource

Overrides = Mapping[str, Any] | Callable[[dict[str, Any]], dict[str, Any]]


def load_config(
    source: ModelSource,
    *,
    hf_overrides: Overrides | None = None,
    read_metadata: Callable[[Path], dict[str, Any]] | None = None,
    quantization_methods: Collection[str] = (),
    rope_types: Collection[str] = (),
) -> CheckedConfig:
    """The configuration of the model, to be used as it is.

    Args:
        hf_overrides: fields to replace, nested objects field by field; or a function from the data to the data.
        read_metadata: makes configuration data out of a GGUF file, where no `config.json` lies beside it.

    Raises:
        ConfigError: CONFIG_NOT_FOUND, or what is wrong in the file. UsageError: what is wrong in the overrides.
    """
    data = _read(source, read_metadata)
    if hf_overrides is not None:
        data = apply_overrides(data, hf_overrides)
    return check_config(data, quantization_methods=quantization_methods, rope_types=rope_types)


def apply_overrides(data: Mapping[str, Any], overrides: Overrides) -> dict[str, Any]:
    """A copy of `data` with the overrides in it; one that asks for code from the model directory is an error."""
    result = copy.deepcopy(dict(data))
    if callable(overrides):
        changed: object = overrides(result)
        if not isinstance(changed, dict):
            got = type(changed).__name__
            raise UsageError("hf_overrides returned no dict", field="hf_overrides", limit="a dict", value=got)
        return changed
    _merge(result, overrides, "hf_overrides", MAX_DEPTH)
    return result


def _merge(into: dict[str, Any], overrides: object, where: str, levels: int) -> None:
    if not isinstance(overrides, Mapping):
        rule = "a mapping, or a function from the data to the data"
        raise UsageError(f"{where} is refused", field=where, limit=rule, value=type(overrides).__name__)
    for name, value in overrides.items():
        field = f"{where}.{name}"
        if not isinstance(name, str) or not name or levels < 1:
            raise UsageError(
                "an override is refused", field=where, limit="field names, nested at most 64 deep", value=name
            )
        if name in NAMES_CODE:
            rule = "not an option that runs or picks code"
            raise UsageError(f"{name} is not supported", field=field, limit=rule, value=value, fix=f"leave {name} out")
        if isinstance(value, Mapping) and isinstance(into.get(name), dict):
            _merge(into[name], value, field, levels - 1)
        elif isinstance(value, str | int | float | bool | list | Mapping | None):
            into[name] = copy.deepcopy(value)
        else:
            kind = type(value).__name__
            raise UsageError("an override is refused", field=field, limit="what JSON can hold", value=kind)


def _read(source: ModelSource, read_metadata: Callable[[Path], dict[str, Any]] | None) -> dict[str, Any]:
    if source.config_path is not None:
        return read_json(source.config_path)
    if source.kind == "gguf" and source.weight_files and read_metadata is not None:
        return read_metadata(source.weight_files[0])
    raise ConfigError(
        f"{source.root.name} holds no config.json",
        code="CONFIG_NOT_FOUND",
        field=str(source.root),
        limit="a config.json beside the weights",
        value=source.name,
        fix="put the model's config.json there, or name one by hf_config_path",
    )
