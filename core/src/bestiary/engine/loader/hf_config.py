"""`make_hf_config`: the transformers configuration object that model authors expect, made from checked data alone.

No Auto class is handed a directory: `model_type` picks a class out of transformers' own table, and the class is called
with the fields. Where transformers knows no such type an attribute bag takes its place.
"""

from __future__ import annotations

import copy
import importlib
import importlib.metadata
import importlib.util
import inspect
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from bestiary.api.errors import ConfigError, shorten

from .bare_packages import bare_packages
from .config_check import nearest

_ACTIVATIONS = "transformers.activations"
_VALIDATORS = "transformers.utils.type_validators"

MISNAMED = {
    **dict.fromkeys(("dim", "n_embd", "n_embed", "d_model", "embed_dim", "hidden_dim", "model_dim"), "hidden_size"),
    **dict.fromkeys(("n_heads", "n_head", "num_heads", "attention_heads"), "num_attention_heads"),
    **dict.fromkeys(("n_kv_heads", "n_head_kv", "num_kv_heads", "kv_heads"), "num_key_value_heads"),
    **dict.fromkeys(("n_layers", "n_layer", "num_layers", "depth"), "num_hidden_layers"),
    **dict.fromkeys(("n_inner", "d_ff", "ffn_dim", "ffn_hidden_size", "mlp_dim"), "intermediate_size"),
    **dict.fromkeys(("n_vocab", "vocabulary_size", "num_tokens"), "vocab_size"),
    **dict.fromkeys(("norm_eps", "layer_norm_eps", "layer_norm_epsilon", "rms_eps"), "rms_norm_eps"),
}
"""Other conventions' names of the fields that decide a model's shape → the name most classes read."""


class AttributeConfig:
    """A `config.json` as attributes, for a `model_type` that transformers does not know.

    Nested objects nest, but those of rotary positions (``rope_…``), which layers take as mappings.
    """

    def __init__(self, data: Mapping[str, Any], *, source: str = "config.json") -> None:
        nested = {
            name: AttributeConfig(value, source=f"{source}: {name}") if _nests(name, value) else value
            for name, value in data.items()
        }
        object.__setattr__(self, "_data", nested)
        object.__setattr__(self, "_source", source)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if name not in self._data:
            close = nearest(name, self._data)
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            raise AttributeError(f"{self._source} has no field {name!r}{hint}", name=name)
        return self._data[name]

    def __setattr__(self, name: str, value: Any) -> None:
        self._data[name] = value

    def __contains__(self, name: str) -> bool:
        return name in self._data

    def __iter__(self) -> Iterator[str]:
        return iter(self._data)

    def __repr__(self) -> str:
        return f"AttributeConfig({self._source}, {len(self._data)} fields)"

    def __deepcopy__(self, memo: dict[int, Any]) -> AttributeConfig:
        return AttributeConfig(copy.deepcopy(self.to_dict(), memo), source=self._source)

    def get(self, name: str, default: Any = None) -> Any:
        return self._data.get(name, default)

    def to_dict(self) -> dict[str, Any]:
        return {name: v.to_dict() if isinstance(v, AttributeConfig) else v for name, v in self._data.items()}


def _nests(name: str, value: object) -> bool:
    return isinstance(value, Mapping) and not name.startswith("rope_")


def make_hf_config(
    data: Mapping[str, Any],
    *,
    parser: Callable[[dict[str, Any]], Any] | None = None,
    config_class: type[Any] | None = None,
    source: str = "config.json",
) -> tuple[Any, tuple[str, ...]]:
    """The configuration object for checked `data`, and notices about fields that look misspelt.

    Args:
        parser: a hook's function from the data to the object; it wins over everything else.
        config_class: a plugin's own class, which wins over transformers'; called with the fields as keyword arguments.
        source: the file's name, for errors.

    Raises:
        ConfigError: the class refuses a field, or a field that decides the model's shape goes by another name.
    """
    if parser is not None:
        return _parsed(parser, data, source), ()
    fields = {name: copy.deepcopy(value) for name, value in data.items() if name != "model_type"}
    cls = config_class or transformers_config_class(data.get("model_type"))
    if cls is None:
        return AttributeConfig(copy.deepcopy(dict(data)), source=source), ()
    known = known_fields(cls)
    _refuse_shadows(cls, fields, known, source)
    rope_log = logging.getLogger("transformers.modeling_rope_utils")
    rope_log.addFilter(_is_news)
    try:
        with _offline():
            config = cls(**fields)
    except ConfigError:
        raise
    except Exception as cause:
        _refuse_misnamed(cls, fields, known, source)
        raise _class_error(cls.__name__, data, cause, source) from cause
    finally:
        rope_log.removeFilter(_is_news)
    _refuse_misnamed(cls, fields, known, source, config)
    return config, _misspelt(cls, fields, known)


def text_config(config: Any) -> Any:
    """The part that describes the language model: a multimodal configuration's text part, else `config` itself."""
    for name in ("text_config", "llm_config", "language_config", "thinker_config"):
        part = config.get(name) if isinstance(config, AttributeConfig) else getattr(config, name, None)
        if part is not None and not isinstance(part, Mapping | str | int | float | list):
            return text_config(part)
    return config


def transformers_config_class(model_type: object) -> type[Any] | None:
    """transformers' configuration class for the type; None where it has none."""
    if model_type is None:
        return None
    if not isinstance(model_type, str):
        raise ConfigError("model_type is no string", field="model_type", limit="a string", value=model_type)
    with bare_packages():
        _import_without_torch_compiler()
        mapping = importlib.import_module("transformers.models.auto.configuration_auto").CONFIG_MAPPING
        if model_type not in mapping:
            return None
        cls: type[Any] = mapping[model_type]
    return cls


@contextmanager
def _offline() -> Iterator[None]:
    """Nothing is fetched meanwhile: configuration classes would ask the hub for parts that a field names."""
    constants: Any = importlib.import_module("huggingface_hub.constants")
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


class _LateActivations(Mapping[str, Any]):
    """transformers' table of activation functions, imported when first looked into."""

    def _table(self) -> Mapping[str, Any]:
        table: Mapping[str, Any] = importlib.import_module(_ACTIVATIONS).ACT2FN
        return table

    def __getitem__(self, name: str) -> Any:
        return self._table()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._table())

    def __len__(self) -> int:
        return len(self._table())

    def __contains__(self, name: object) -> bool:
        return name in self._table()


def _import_without_torch_compiler() -> None:
    """Import the validators that every configuration class uses, but not the activation functions behind them.

    transformers' `type_validators` imports `transformers.activations` only for the names of the functions, and that
    module imports the kernel hub, accelerate, `torch._dynamo`, `torch.distributed.tensor` and sympy: half of the whole
    time. While the validators load, a stand-in holds a table that fills itself on first use; afterwards nothing of the
    stand-in remains in `sys.modules`. Where transformers is arranged otherwise the plain import follows.
    """
    if _VALIDATORS in sys.modules or _ACTIVATIONS in sys.modules:
        return
    for name in ("transformers.tokenization_utils_base", "transformers.video_utils"):
        importlib.import_module(name)
    if _ACTIVATIONS in sys.modules:
        return
    stand_in = ModuleType(_ACTIVATIONS)
    stand_in.ACT2FN = _LateActivations()  # type: ignore[attr-defined]
    sys.modules[_ACTIVATIONS] = stand_in
    try:
        importlib.import_module(_VALIDATORS)
    except ImportError:
        sys.modules.pop(_VALIDATORS, None)
    finally:
        sys.modules.pop(_ACTIVATIONS, None)


def _is_news(record: logging.LogRecord) -> bool:
    """transformers warns that it cannot check the rope types it does not know; `config_rope` has checked them."""
    return "Missing validation function" not in str(record.msg)


def _parsed(parser: Callable[[dict[str, Any]], Any], data: Mapping[str, Any], source: str) -> Any:
    try:
        return parser(copy.deepcopy(dict(data)))
    except ConfigError:
        raise
    except Exception as cause:
        raise _class_error(getattr(parser, "__name__", "the parser"), data, cause, source) from cause


def known_fields(cls: type[Any]) -> frozenset[str]:
    """The names that the class reads: its constructor's, and the aliases it maps to them."""
    parameters = inspect.signature(cls).parameters.values()
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return frozenset(named | set(getattr(cls, "attribute_map", {})))


def _refuse_shadows(cls: type[Any], fields: Mapping[str, Any], known: frozenset[str], source: str) -> None:
    """A field that would replace a method or the class's own tables is an attack or an accident."""
    for name in fields:
        member = inspect.getattr_static(cls, name, None)
        shadows = callable(member) or isinstance(member, classmethod | staticmethod)
        if name not in known and (shadows or name in ("attribute_map", "sub_configs")):
            rule = f"not the name of a member of {cls.__name__}"
            raise ConfigError(f"field {name} is refused", field=f"{source}: {name}", limit=rule, value=name)


def _refuse_misnamed(
    cls: type[Any], fields: Mapping[str, Any], known: frozenset[str], source: str, made: Any = None
) -> None:
    """The class takes its default for a size that the file states under another convention's name.

    made: the object, if it could be made; a class may read a name that it does not announce (BLOOM's `n_embed`).
    """
    wrong = [
        name
        for name, value in fields.items()
        if name in MISNAMED and value is not None and name not in known
        if MISNAMED[name] in known and not _is_given(cls, MISNAMED[name], fields)
        if getattr(made, MISNAMED[name], None) != value
    ]
    if wrong:
        first, meant = wrong[0], MISNAMED[wrong[0]]
        raise ConfigError(
            f"{first} is not a field that {cls.__name__} reads",
            code="INCOMPATIBLE_PARAMETER",
            field=f"{source}: {first}",
            limit=f"{cls.__name__} reads {meant}",
            value=fields[first],
            details=[f"{name} = {shorten(fields[name])}: write {MISNAMED[name]}" for name in wrong],
            fix=f"rename it in config.json, or pass hf_overrides={{{meant!r}: {shorten(fields[first])}}}",
        )


def _is_given(cls: type[Any], name: str, fields: Mapping[str, Any]) -> bool:
    aliases: Mapping[str, str] = getattr(cls, "attribute_map", {})
    return name in fields or aliases.get(name) in fields


def _misspelt(cls: type[Any], fields: Mapping[str, Any], known: frozenset[str]) -> tuple[str, ...]:
    """A notice for each field that the class does not read but whose name is close to one that it does and lacks."""
    absent = {name for name in known if name not in fields}
    notices = []
    for name in fields:
        close = [] if name in known else nearest(name, absent, count=1, cutoff=0.9)
        if close:
            notices.append(f"{name} is not a field that {cls.__name__} reads; did you mean {close[0]}?")
    return tuple(notices)


def _class_error(who: str, fields: Mapping[str, Any], cause: Exception, source: str) -> ConfigError:
    """What the class complained about, with the field it named where one can be found in its message."""
    message = " ".join(str(cause).split())
    by_length = sorted(fields, key=len, reverse=True)
    quoted = [name for name in by_length if f"'{name}'" in message or f"`{name}`" in message]
    field = next(iter(quoted or [name for name in by_length if name in message]), None)
    return ConfigError(
        f"{who} refuses the configuration: {message[:300]}",
        field=source if field is None else f"{source}: {field}",
        limit=f"what {who} accepts ({type(cause).__name__})",
        value=None if field is None else fields[field],
        fix="correct the field in config.json, or override it with hf_overrides",
    )
