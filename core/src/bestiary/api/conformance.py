"""Whether a model class is what it says: every missing or wrong member at once, on classes as well as instances.

Works by looking, never by calling: nothing is instantiated, a property that raises is reported, and torch is not
imported. A class claims a protocol by its marker (`supports_lora = True`), inherited or written by hand.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from types import FunctionType
from typing import Any, Literal

from . import protocols
from .errors import InvalidModel
from .protocols import MARKERS, VllmModel, VllmModelForPooling, VllmModelForTextGeneration
from .signatures import assigned_names, bound_signature, declaration, mismatches

_MISSING = object()
_METHODS = (FunctionType, classmethod, staticmethod)

Category = Literal[
    "text_generation", "embedding", "cross_encoder", "multimodal", "speculative_decoding", "transformers_backed"
]


@dataclass(frozen=True, slots=True)
class Problem:
    """One member that is not as its protocol declares it."""

    protocol: str
    member: str
    what: str
    expected: str

    def __str__(self) -> str:
        return f"{self.protocol}.{self.member} {self.what}; expected: {self.expected}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What a model class can do, as data that crosses process boundaries."""

    architecture: str
    module: str
    qualname: str
    categories: tuple[Category, ...]
    lora: bool = False
    pp: bool = False
    multimodal: bool = False
    moe: bool = False
    quant: bool = False
    inner_state: bool = False
    hybrid: bool = False
    attention_free: bool = False
    pooling: bool = False
    cross_encoding: bool = False
    eagle: bool = False
    eagle3: bool = False

    def as_dict(self) -> dict[str, object]:
        return {f.name: getattr(self, f.name) for f in fields(self)} | {"categories": list(self.categories)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelInfo:
        """The inverse of `as_dict`; raises TypeError or ValueError on anything else."""
        known = {f.name: f for f in fields(cls)}
        if set(data) != set(known):
            raise ValueError("not the fields of a ModelInfo")
        for name, value in data.items():
            kind = list if name == "categories" else str if known[name].type == "str" else bool
            if not isinstance(value, kind):
                raise TypeError(f"{name} is {type(value).__name__}")
        return cls(**{**data, "categories": tuple(str(category) for category in data["categories"])})


def check(subject: object, protocol: type) -> list[Problem]:
    """Everything that keeps `subject`, a class or an instance, from fulfilling `protocol`; empty when it does."""
    found: list[Problem] = []
    for declared_in, name, expected in _members(protocol):
        if isinstance(expected, _METHODS):
            text = declaration(name, expected)
            problems = _check_method(subject, name, expected)
        else:
            annotation, default = expected
            text = f"{name}: {annotation}" + ("" if default is _MISSING else f" = {default!r}")
            problems = _check_value(subject, name, annotation)
        found += [Problem(declared_in, name, what, text) for what in problems]
    return found


def _members(protocol: type) -> Iterator[tuple[str, str, Any]]:
    """(protocol, member, its method | (annotation, default)) for all that `protocol` and its bases declare."""
    for base in protocol.__mro__:
        if not _is_protocol(base):
            continue
        annotations = base.__dict__.get("__annotations__", {})
        for name, annotation in annotations.items():
            yield base.__name__, name, (str(annotation), base.__dict__.get(name, _MISSING))
        for name, member in base.__dict__.items():
            if isinstance(member, _METHODS) and (name == "__init__" or not name.startswith("_")):
                if name == "__init__" and member.__module__ != base.__module__:
                    continue  # the placeholder that typing gives every protocol
                yield base.__name__, name, member


def _is_protocol(cls: type) -> bool:
    """Whether it is a protocol that lists members (`typing.Protocol` itself does not)."""
    return bool(cls.__dict__.get("_is_protocol")) and cls.__module__ != "typing"


def _is_placeholder(owner: type, name: str) -> bool:
    """Members that say only "nobody wrote this one": `object`'s and `torch.nn.Module`'s."""
    return owner is object or (name in ("__init__", "forward") and owner.__module__ == "torch.nn.modules.module")


def _find(subject: object, name: str, *, inherit_values: bool) -> Any:
    """The member as it lies in its class (or instance), not counting bare declarations; `_MISSING` if there is none."""
    cls = subject if isinstance(subject, type) else type(subject)
    if subject is not cls:
        own = getattr(subject, "__dict__", {})
        if name in own:
            return own[name]
    for owner in cls.__mro__:
        if name not in owner.__dict__ or _is_placeholder(owner, name):
            continue
        member = owner.__dict__[name]
        declared_only = _is_protocol(owner) or owner.__module__ == "typing"
        if declared_only and not inherit_values and not getattr(member, "__bestiary_provided__", False):
            continue
        return member
    return _MISSING


def _check_method(subject: object, name: str, expected: Any) -> Iterator[str]:
    member = _find(subject, name, inherit_values=False)
    if member is _MISSING:
        if name == "__init__" or not _exists_otherwise(subject, name):
            yield "is missing"
    elif isinstance(member, property):
        yield from _read_problem(subject, name)
    elif not callable(member) and not isinstance(member, _METHODS):
        yield f"is {type(member).__name__}, not a method"
    else:
        base = VllmModel.__dict__.get(name)
        yield from mismatches(expected, member, passed=() if base is None else _parameters(base))


def _parameters(method: Any) -> frozenset[str]:
    signature = bound_signature(method)
    return frozenset() if signature is None else frozenset(signature.parameters)


def _check_value(subject: object, name: str, annotation: str) -> Iterator[str]:
    member = _find(subject, name, inherit_values=True)
    if member is _MISSING:
        if not _exists_otherwise(subject, name):
            yield "is missing"
        return
    descriptor = hasattr(type(member), "__get__")
    if not descriptor:
        yield from _wrong_value(annotation, member)
    elif not (isinstance(subject, type) and isinstance(member, property)):
        yield from _read_problem(subject, name, annotation)


def _exists_otherwise(subject: object, name: str) -> bool:
    """A member that no class body holds: assigned by a constructor, or a submodule of an instance."""
    if isinstance(subject, type):
        return name in assigned_names(subject)
    stores = (getattr(subject, store, None) for store in ("_modules", "_parameters", "_buffers"))
    return any(isinstance(store, dict) and name in store for store in stores)


def _read_problem(subject: object, name: str, annotation: str = "") -> Iterator[str]:
    if isinstance(subject, type) and isinstance(inspect.getattr_static(subject, name, None), property):
        return
    try:
        value = getattr(subject, name)
    except Exception as error:  # whatever a plugin's property raises is a finding, not ours to handle
        yield f"raises {type(error).__name__}: {error}"
    else:
        yield from _wrong_value(annotation, value)


def _wrong_value(annotation: str, value: object) -> Iterator[str]:
    rule = next((rule for text, rule in _VALUE_RULES.items() if text in annotation), None)
    if rule is not None and not rule(value):
        yield f"is {value!r:.64}"


def _str_lists(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(key, str) and isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
        for key, names in value.items()
    )


_VALUE_RULES: Mapping[str, Callable[[object], bool]] = {
    "Literal[True]": lambda value: value is True,
    "dict[str, list[str]]": _str_lists,
    "dict[str, str]": lambda value: (
        isinstance(value, Mapping) and all(isinstance(k, str) and isinstance(v, str) for k, v in value.items())
    ),
    "bool": lambda value: isinstance(value, bool),
}


def claims(subject: object, marker: str) -> bool:
    """Whether it says so; `check` says whether it is so."""
    return _find(subject, marker, inherit_values=True) is True


def _fulfils(subject: object, marker: str) -> bool:
    return claims(subject, marker) and not check(subject, MARKERS[marker])


def is_vllm_model(subject: object) -> bool:
    return not check(subject, VllmModel)


def is_text_generation_model(subject: object) -> bool:
    return not check(subject, VllmModelForTextGeneration)


def is_pooling_model(subject: object) -> bool:
    return _fulfils(subject, "is_pooling_model")


def supports_lora(subject: object) -> bool:
    return _fulfils(subject, "supports_lora")


def supports_pp(subject: object) -> bool:
    return _fulfils(subject, "supports_pp")


def supports_multimodal(subject: object) -> bool:
    return _fulfils(subject, "supports_multimodal")


def supports_quant(subject: object) -> bool:
    return _fulfils(subject, "supports_quant")


def is_mixture_of_experts(subject: object) -> bool:
    return _fulfils(subject, "is_mixture_of_experts")


def has_inner_state(subject: object) -> bool:
    return _fulfils(subject, "has_inner_state")


def is_attention_free(subject: object) -> bool:
    return _fulfils(subject, "is_attention_free")


def is_hybrid(subject: object) -> bool:
    return _fulfils(subject, "is_hybrid")


def supports_cross_encoding(subject: object) -> bool:
    return _fulfils(subject, "supports_cross_encoding")


def supports_eagle(subject: object) -> bool:
    return _fulfils(subject, "supports_eagle")


def supports_eagle3(subject: object) -> bool:
    return _fulfils(subject, "supports_eagle3")


def _categories(cls: type) -> Iterator[Category]:
    pooling = is_pooling_model(cls)
    draft = claims(cls, "is_draft_model")
    if is_text_generation_model(cls) and not draft:
        yield "text_generation"
    if pooling:
        yield "cross_encoder" if supports_cross_encoding(cls) else "embedding"
    if supports_multimodal(cls):
        yield "multimodal"
    if draft:
        yield "speculative_decoding"
    if claims(cls, "is_transformers_backed"):
        yield "transformers_backed"


def capabilities(cls: type, architecture: str | None = None) -> ModelInfo:
    """What the class can do, derived from what it is."""
    return ModelInfo(
        architecture=architecture or cls.__name__,
        module=cls.__module__,
        qualname=cls.__qualname__,
        categories=tuple(_categories(cls)),
        lora=supports_lora(cls),
        pp=supports_pp(cls),
        multimodal=supports_multimodal(cls),
        moe=is_mixture_of_experts(cls),
        quant=supports_quant(cls),
        inner_state=has_inner_state(cls),
        hybrid=is_hybrid(cls),
        attention_free=is_attention_free(cls),
        pooling=is_pooling_model(cls),
        cross_encoding=supports_cross_encoding(cls),
        eagle=supports_eagle(cls),
        eagle3=supports_eagle3(cls),
    )


def problems_of(subject: object) -> list[Problem]:
    """All that keeps `subject` from being served: the base protocol's members and those of every protocol it claims."""
    if not isinstance(subject, type):
        kind = "a function" if isinstance(subject, FunctionType) else f"an instance of {type(subject).__name__}"
        return [Problem("VllmModel", "class", f"is {kind}", "a class")]
    claimed: list[type] = [protocol for marker, protocol in MARKERS.items() if claims(subject, marker)]
    if VllmModelForPooling not in claimed and protocols.IsDraftModel not in claimed:
        claimed.insert(0, VllmModelForTextGeneration)
    found = [problem for protocol in (VllmModel, *claimed) for problem in check(subject, protocol)]
    return list(dict.fromkeys(found))


def require(subject: object, *, origin: str | None = None) -> type:
    """`subject` as a model class; raises InvalidModel that lists everything wrong with it.

    Args:
        origin: where it comes from, for the message: ``"bestiary-llama 0.1.0"``.
    """
    found = problems_of(subject)
    if not found and isinstance(subject, type):
        return subject
    name = getattr(subject, "__qualname__", type(subject).__name__)
    raise InvalidModel(
        f"{name}{f' of {origin}' if origin else ''} is not a model class: {len(found)} problem(s)",
        value=f"{getattr(subject, '__module__', '?')}:{name}",
        details=[str(problem) for problem in found],
        fix="write or correct these members; signatures are in bestiary.api.protocols",
    )
