"""Whether a model class is what it says: every missing or wrong member at once, on classes as well as instances.

Works by looking, never by calling: nothing is instantiated, a property that raises is reported, and torch is not
imported. A class claims a protocol by its marker (`supports_lora = True`), inherited or written by hand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from types import FunctionType
from typing import Any, Literal

from .errors import InvalidModel
from .members import Problem, check, claims
from .protocols import MARKERS, IsDraftModel, VllmModel, VllmModelForPooling, VllmModelForTextGeneration

__all__ = [
    "Category",
    "ModelInfo",
    "Problem",
    "capabilities",
    "check",
    "claims",
    "has_inner_state",
    "is_attention_free",
    "is_hybrid",
    "is_mixture_of_experts",
    "is_pooling_model",
    "is_text_generation_model",
    "is_vllm_model",
    "problems_of",
    "require",
    "supports_cross_encoding",
    "supports_eagle",
    "supports_eagle3",
    "supports_lora",
    "supports_multimodal",
    "supports_pp",
    "supports_quant",
]

Category = Literal[
    "text_generation", "embedding", "cross_encoder", "multimodal", "speculative_decoding", "transformers_backed"
]


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
    if VllmModelForPooling not in claimed and IsDraftModel not in claimed:
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
