"""Rotary scaling as `config.json` states it: `rope_scaling` of old, `rope_parameters` since transformers 5.

The values are positive and finite because the rotary tables divide by them and take their logarithms.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from .config_fields import Config, Offence, is_number

FIELDS = ("rope_scaling", "rope_parameters")

REQUIRED: dict[str, tuple[str, ...]] = {
    "default": (),
    "mrope": (),
    "proportional": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "longrope": ("short_factor", "long_factor"),
    "su": ("short_factor", "long_factor"),
    "factors": ("freq_factors",),
}
"""Rope type → what it cannot do without. ``factors``, a divisor for each frequency, is what GGUF files carry."""

_LISTS = ("short_factor", "long_factor", "freq_factors")
_POSITIVE = (
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "rope_theta",
    "partial_rotary_factor",
    "long_mscale",
    "short_mscale",
)
_MAX_FREQUENCIES = 2**16
_MAX_NUMBER = 1e18


def check_rope(data: Config, where: str, more_types: Collection[str] = ()) -> list[Offence]:
    """Every offence in the rotary settings of `data`; `more_types` are those that plugins add, checked by them."""
    offences = []
    for name in FIELDS:
        value = data.get(name)
        if value is None:
            continue
        if not isinstance(value, Mapping):
            offences.append(Offence(where + name, "an object or null", value))
        elif value and "rope_type" not in value and "type" not in value and _is_per_layer(value):
            for layer_type, settings in value.items():
                if settings is not None:
                    offences += _check_settings(settings, f"{where}{name}.{layer_type}", more_types)
        elif value:
            offences += _check_settings(value, where + name, more_types)
    return offences


def _is_per_layer(value: Mapping[str, Any]) -> bool:
    return all(item is None or isinstance(item, Mapping) for item in value.values())


def _check_settings(settings: Mapping[str, Any], where: str, more_types: Collection[str]) -> list[Offence]:
    kind = settings.get("rope_type", settings.get("type", "default" if "rope_parameters" in where else None))
    if not isinstance(kind, str) or kind not in {*REQUIRED, *more_types}:
        return [Offence(f"{where}.rope_type", f"one of {', '.join(sorted({*REQUIRED, *more_types}))}", kind)]
    required = REQUIRED.get(kind, ())
    offences = [
        Offence(f"{where}.{name}", f"given for rope type {kind}", None) for name in required if name not in settings
    ]
    for name in _POSITIVE:
        if (
            name in settings
            and not (settings[name] is None and name not in required)
            and not _is_positive(settings[name])
        ):
            offences.append(Offence(f"{where}.{name}", "a finite number above 0", settings[name]))
    for name in _LISTS:
        if name in settings and not _is_list_of_positive(settings[name]):
            offences.append(
                Offence(f"{where}.{name}", f"1 to {_MAX_FREQUENCIES} finite numbers above 0", settings[name])
            )
    if kind == "llama3" and not offences and settings["high_freq_factor"] <= settings["low_freq_factor"]:
        rule = f"above low_freq_factor = {settings['low_freq_factor']}"
        offences.append(Offence(f"{where}.high_freq_factor", rule, settings["high_freq_factor"]))
    return offences


def _is_positive(value: object) -> bool:
    return is_number(value) and 0 < value <= _MAX_NUMBER  # type: ignore[operator]


def _is_list_of_positive(value: object) -> bool:
    return isinstance(value, list) and 0 < len(value) <= _MAX_FREQUENCIES and all(_is_positive(item) for item in value)
