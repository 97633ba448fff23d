"""`check_config`: from a parsed `config.json` to one that names no code, no absurd number and no unknown method.

Runs before anything is imported or allocated for the model. Everything in the file that asks for code to be run
(`auto_map` and its kin) is dropped at every level with a notice; everything that is merely wrong is one error.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from bestiary.api.errors import ConfigError, UnknownArchitecture

from .config_fields import Config, Offence, check_fields, check_ratios, refuse
from .config_rope import check_rope

NAMES_CODE = frozenset(
    (
        "auto_map",
        "trust_remote_code",
        "custom_pipelines",
        "custom_generate",
        "attn_implementation",
        "_attn_implementation",
        "_attn_implementation_internal",
        "_attn_implementation_autoset",
        "_experts_implementation",
        "_experts_implementation_internal",
        "use_kernels",
        "kernel_config",
        "backbone",
        "use_timm_backbone",
        "use_pretrained_backbone",
    )
)
"""Fields by which a model directory picks code, or another model to fetch, wherever they stand: never obeyed."""

QUANTIZATION_FIELDS = ("quantization_config", "compression_config")
MAX_ARCHITECTURES = 16
_NOT_IN_JSON = ("Infinity", "-Infinity", "NaN")
"""What transformers writes as ``{"__float__": …}``, since JSON has no such numbers."""
_TEXT_PARTS = ("", "text_config.", "llm_config.", "language_config.", "decoder.")
_METHOD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_CLASS_PATH = re.compile(r"[.:/\\]")


@dataclass(frozen=True, kw_only=True)
class CheckedConfig:
    """A configuration that may be used: the cleaned copy, and what the user should be told about the cleaning."""

    data: dict[str, Any]
    notices: tuple[str, ...]


def check_config(
    data: Mapping[str, Any],
    *,
    quantization_methods: Collection[str] = (),
    rope_types: Collection[str] = (),
) -> CheckedConfig:
    """The cleaned copy of `data`, which stays untouched.

    Args:
        quantization_methods: names that are registered; any other `quant_method` is an error that lists them.
        rope_types: types of rotary scaling that plugins add to the built-in ones.

    Raises:
        ConfigError: fields break their rules; all of them are named.
    """
    notices: list[str] = []
    cleaned = _without_code(data, "", notices)
    offences: list[Offence] = []
    for where, part in _parts(cleaned):
        offences += check_fields(part, where)
        offences += check_rope(part, where, rope_types)
    refuse(offences)
    for where, part in _parts(cleaned):
        if where in _TEXT_PARTS:
            offences += check_ratios(part, where)
    refuse(offences)
    for where, part in _parts(cleaned):
        for name in QUANTIZATION_FIELDS:
            if part.get(name) is not None:
                _check_quantization(part[name], where + name, quantization_methods)
    return CheckedConfig(data=cleaned, notices=tuple(notices))


def architectures(data: Config, *, known: Collection[str] | None = None) -> tuple[str, ...]:
    """The names under `architectures`; with `known` (what is installed), at least one of them must be among those.

    Raises:
        ConfigError: MISSING_ARCHITECTURE or BAD_ARCHITECTURE. UnknownArchitecture: none is known.
    """
    name = "architectures"
    if data.get(name) is None:
        hint = f" for model_type {data['model_type']!r}" if isinstance(data.get("model_type"), str) else ""
        fix = f'add "architectures": ["<ClassName>"]{hint} to config.json, or give it by hf_overrides'
        raise ConfigError(
            "config.json names no architecture", code="MISSING_ARCHITECTURE", field=name, limit="given", fix=fix
        )
    value = data[name]
    fix = 'write it as a list of class names: "architectures": ["YourModelForCausalLM"]'
    if not isinstance(value, list):
        raise ConfigError(
            "architectures is no list", code="BAD_ARCHITECTURE", field=name, limit="a list", value=value, fix=fix
        )
    if not value:
        raise ConfigError(
            "architectures is empty", code="MISSING_ARCHITECTURE", field=name, limit="1 name", value=value, fix=fix
        )
    if len(value) > MAX_ARCHITECTURES or not all(isinstance(item, str) and item.isidentifier() for item in value):
        rule = f"at most {MAX_ARCHITECTURES} class names"
        raise ConfigError("not a class name", code="BAD_ARCHITECTURE", field=name, limit=rule, value=value, fix=fix)
    if known is not None and not set(value) & set(known):
        close = nearest(value[0], known)
        raise UnknownArchitecture(
            f"no installed package implements {' or '.join(value)}"
            + (f"; did you mean {' or '.join(close)}?" if close else ""),
            field=name,
            limit=f"one of the {len(set(known))} installed",
            value=value[0],
            fix="`bestiary models` lists what is installed; install the package that provides it",
        )
    return tuple(value)


def nearest(name: str, names: Collection[str], *, count: int = 3, cutoff: float = 0.6) -> list[str]:
    """Up to `count` of `names` that look like `name`, the likest first; letter case does not matter."""
    by_lower = {candidate.lower(): candidate for candidate in sorted(names)}
    return [
        by_lower[match] for match in difflib.get_close_matches(name.lower()[:200], by_lower, n=count, cutoff=cutoff)
    ]


def _without_code(value: Mapping[str, Any], where: str, notices: list[str]) -> dict[str, Any]:
    """A deep copy less the fields that name code. Recursion is safe: the reader bounds the depth."""
    result: dict[str, Any] = {}
    for name, item in value.items():
        if name in NAMES_CODE:
            if item:
                notices.append(f"{where}{name} ignored: this project runs no code from model directories")
        elif name.startswith("__"):
            raise ConfigError("a field name is refused", field=where + name, limit="no leading __", value=name)
        else:
            result[name] = _copy(item, f"{where}{name}", notices)
    return result


def _copy(value: Any, where: str, notices: list[str]) -> Any:
    if isinstance(value, Mapping):
        if value.keys() == {"__float__"} and value["__float__"] in _NOT_IN_JSON:
            return float(value["__float__"])
        return _without_code(value, f"{where}.", notices)
    if isinstance(value, list | tuple):
        return [_copy(item, f"{where}[{index}]", notices) for index, item in enumerate(value)]
    return value


def _parts(data: Config) -> list[tuple[str, Config]]:
    """The configuration and every configuration nested in it, each with the prefix of its fields' paths."""
    parts: list[tuple[str, Config]] = [("", data)]
    for where, part in parts:
        for name, value in part.items():
            if isinstance(value, Mapping) and name not in QUANTIZATION_FIELDS and _is_config_name(name):
                parts.append((f"{where}{name}.", value))
    return parts


def _is_config_name(name: str) -> bool:
    return name.endswith("_config") or name in ("decoder", "encoder")


def _check_quantization(value: Any, where: str, methods: Collection[str]) -> None:
    known = ", ".join(sorted(methods)) or "none"
    fix = f"registered methods: {known}; a package with a `bestiary_hooks` entry can add one"
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} is no object", code="BAD_QUANTIZATION", field=where, limit="an object", value=value)
    field = f"{where}.quant_method"
    method = value.get("quant_method")
    if not isinstance(method, str) or not method:
        rule = f"one of: {known}"
        shown = "absent" if method is None else method
        raise ConfigError(
            "no quantization method", code="BAD_QUANTIZATION", field=field, limit=rule, value=shown, fix=fix
        )
    if _CLASS_PATH.search(method):
        rule = f"a registered name, never the path of a class: {known}"
        raise ConfigError(
            "not a method's name", code="BAD_QUANTIZATION", field=field, limit=rule, value=method, fix=fix
        )
    if not _METHOD.fullmatch(method) or method not in methods:
        close = nearest(method, methods)
        message = f"unknown quantization method {method[:64]!r}" + (f"; did you mean {close[0]}?" if close else "")
        raise ConfigError(
            message, code="UNKNOWN_QUANTIZATION", field=field, limit=f"one of: {known}", value=method, fix=fix
        )
    bits = value.get("bits")
    if bits is not None and not (isinstance(bits, int) and not isinstance(bits, bool) and 1 <= bits <= 16):
        raise ConfigError(
            f"{where}.bits is refused", field=f"{where}.bits", limit="an integer from 1 to 16", value=bits
        )
    group = value.get("group_size")
    if group is not None and not (
        isinstance(group, int) and not isinstance(group, bool) and (group == -1 or 1 <= group <= 2**16)
    ):
        rule = "-1 (a whole row) or an integer from 1 to 65536"
        raise ConfigError(f"{where}.group_size is refused", field=f"{where}.group_size", limit=rule, value=group)
