"""Configuration objects as model files of every age read them: transformers 4's names of fields beside those of 5.

A file written before 2026 reads `rope_theta` and `rope_scaling`, mostly with a default that would be taken silently. A
`model_type` that transformers does not know becomes what its own class would have been: a `PreTrainedConfig`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Mapping
from functools import cache
from typing import Any, cast

_LOCAL, _GLOBAL = "sliding_attention", "full_attention"
_FACTOR = ("partial_rotary_factor", "rotary_pct", "rope_pct")
_BASES = ("rope_theta", "rotary_emb_base", "rope_base")


class Fields(dict[str, Any]):
    """An object within a configuration, read as a mapping or by attributes."""

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(f"this part of the configuration has no field {name!r}", name=name)
        return self[name]


class ByKind(dict[str, Any]):
    """Rotary parameters for each kind of layer; asked as if they were one kind's, it answers for layers without a
    window, whose were the only ones."""

    def __missing__(self, name: str) -> Any:
        if name == _GLOBAL:
            raise KeyError(name)
        return self[_GLOBAL][name]


class OlderNames:
    """What transformers 4 had as fields and 5 has in `rope_parameters`."""

    def __getattr__(self, name: str) -> Any:
        """Asked only for what is not there."""
        found = _OLDER[name](self) if name in _OLDER else None
        if found is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)
        return found

    def __getitem__(self, name: str) -> Any:
        """Parts that are objects were mappings."""
        return getattr(self, name)

    @property
    def rope_scaling(self) -> Any:
        """None where positions are not scaled: files of then take anything else for scaling."""
        if "rope_scaling" in self.__dict__:
            return self.__dict__["rope_scaling"]
        parameters = _rope(self)[1]
        return None if parameters.get("rope_type", "default") == "default" else parameters

    @rope_scaling.setter
    def rope_scaling(self, value: Any) -> None:
        self.__dict__["rope_scaling"] = value


def as_read_by_files(config: Any, text_config: Any) -> tuple[Any, Any]:
    """(copies of a model's configuration object and of its text part, which may be it) with the older names."""
    if not _is_transformers(config):
        made = _made_of(config)
        return made, made if text_config is config else _made_of(text_config)
    memo: dict[int, Any] = {}
    both = copy.deepcopy(config, memo), copy.deepcopy(text_config, memo)
    for each in both:
        for part in (each, *vars(each).values()):
            if not isinstance(part, OlderNames) and _is_transformers(part):
                part.__class__ = _class_of(cast(Hashable, type(part)))
                if _GLOBAL in (part.__dict__.get("rope_parameters") or {}):
                    part.rope_parameters = ByKind(part.rope_parameters)
    return both


def _rope(config: Any) -> tuple[Any, Any]:
    """(the rotary parameters of layers with a window where they have their own, those of the others)."""
    parameters = config.__dict__.get("rope_parameters") or {}
    if _GLOBAL in parameters or _LOCAL in parameters:
        return parameters.get(_LOCAL), parameters.get(_GLOBAL) or {}
    return None, parameters


def _window_every(config: Any) -> int | None:
    """How many layers lie from one without a window to the next, where that is how they alternate."""
    kinds = config.__dict__.get("layer_types") or []
    first = kinds.index(_GLOBAL) + 1 if _GLOBAL in kinds else len(kinds) + 1
    even = all((kind == _GLOBAL) == (at % first == 0) for at, kind in enumerate(kinds, 1))
    return first if even and _LOCAL in kinds else None


def _window(config: Any) -> int | None:
    """The window of those layers that have one, where others do not."""
    return config.__dict__.get("sliding_window") if _LOCAL in (config.__dict__.get("layer_types") or []) else None


_OLDER: Mapping[str, Callable[[Any], Any]] = {
    "rope_theta": lambda config: _rope(config)[1].get("rope_theta"),
    "rope_local_base_freq": lambda config: (_rope(config)[0] or {}).get("rope_theta"),
    **{name: lambda config: _rope(config)[1].get(_FACTOR[0]) for name in _FACTOR},
    "hidden_act": lambda config: config.__dict__.get("hidden_activation"),
    "interleaved_sliding_window": _window,
    "sliding_window_pattern": _window_every,
}
"""An older name → its value, or None where there is none."""


def _is_transformers(config: Any) -> bool:
    """Whether it is of a class of transformers', not of core's for types that those do not know, or a plugin's own."""
    return hasattr(config, "to_diff_dict")


def _made_of(other: Any) -> Any:
    """transformers' object of the same fields; embeddings are not tied where the file does not say so."""
    from transformers import PreTrainedConfig

    data = {"tie_word_embeddings": False, **(other.to_dict() if hasattr(other, "to_dict") else vars(other))}
    model_type = data.pop("model_type", "")
    data = {name: value if name.startswith("rope_") else _nested(value) for name, value in data.items()}
    parameters = _rope_parameters(data)
    if parameters is not None:
        data["rope_parameters"] = parameters
    rope_scaling = data.pop("rope_scaling", None)
    made: Any = _class_of(_unchecked(PreTrainedConfig))(**data)
    made.model_type = model_type
    if rope_scaling is not None:
        made.rope_scaling = rope_scaling
    return made


def _rope_parameters(data: Mapping[str, Any]) -> dict[str, Any] | None:
    """The rotary settings in their present form; None where the file has none at all."""
    if data.get("rope_parameters"):
        return dict(data["rope_parameters"])
    base = next((data[name] for name in _BASES if data.get(name) is not None), None)
    scaling = dict(data.get("rope_scaling") or {})
    if base is None and not scaling:
        return None
    if "type" in scaling:
        scaling.setdefault("rope_type", scaling.pop("type"))
    made = {"rope_type": "default", **scaling}
    if base is not None:
        made["rope_theta"] = base
    factor = next((data[name] for name in _FACTOR if data.get(name) is not None), None)
    return made if factor is None else made | {"partial_rotary_factor": factor}


def _nested(value: Any) -> Any:
    if isinstance(value, Mapping):
        return Fields({name: _nested(each) for name, each in value.items()})
    return [_nested(each) for each in value] if isinstance(value, list) else value


@cache
def _unchecked(base: Any) -> Any:
    """A class whose `validate`, which model files may call, leaves the check to core: it has been done."""
    return type("PreTrainedConfig", (base,), {"validate": lambda self: None, "__module__": __name__})


@cache
def _class_of(config_class: Hashable) -> Any:
    base: Any = config_class
    return type(base.__name__, (OlderNames, base), {"__module__": base.__module__})
