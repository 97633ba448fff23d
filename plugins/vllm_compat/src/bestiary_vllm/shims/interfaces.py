"""Protocols and decorators of vLLM's `interfaces` that core has no use for, or states otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal, Protocol, TypeVar, runtime_checkable

import torch

from bestiary.api.protocols import MARKERS

C = TypeVar("C", bound=type)

MambaStateShapes = tuple[tuple[int, ...], ...]


@runtime_checkable
class HasNoOps(Protocol):
    """Some layers are left out, or do nothing; a stack says so by being one."""

    has_noops: ClassVar[Literal[True]] = True


@runtime_checkable
class SupportsMambaPrefixCaching(Protocol):
    """The states of state layers can be kept for other prompts; here they always are."""

    supports_mamba_prefix_caching: ClassVar[Literal[True]] = True


@runtime_checkable
class SupportsReplaySSM(Protocol):
    """State layers can be computed again from a buffer; here nothing asks for that."""

    supports_replayssm: ClassVar[Literal[True]] = True


@runtime_checkable
class SupportsMRoPE(Protocol):
    """Positions have several axes; those of text are all the same, so one is enough here."""

    supports_mrope: ClassVar[Literal[True]] = True


@runtime_checkable
class SupportsTranscription(Protocol):
    """The model writes down speech."""

    supports_transcription: ClassVar[Literal[True]] = True


@runtime_checkable
class SupportsV0Only(Protocol):
    """The model ran on vLLM's first engine only."""

    supports_v0_only: ClassVar[Literal[True]] = True


class LocalArgmaxMixin:
    """The largest logit of this rank's part of the vocabulary."""

    def compute_logits_local(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The same as `compute_logits`; the engine joins ranks by itself."""
        found: torch.Tensor = self.compute_logits(hidden_states)  # type: ignore[attr-defined]
        return found

    def get_top_tokens(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """``[rows]``: the id of the largest logit."""
        return self.compute_logits_local(hidden_states).argmax(-1)


def claims(marker: str) -> Callable[[Any], bool]:
    """``supports_pp`` and its like: whether a model, or a class of models, says that it is such a one."""

    def asks(model: Any) -> bool:
        return bool(getattr(model, marker, False))

    return asks


supports_lora = claims("supports_lora")
supports_pp = claims("supports_pp")
supports_multimodal = claims("supports_multimodal")
has_inner_state = claims("has_inner_state")
is_attention_free = claims("is_attention_free")
is_hybrid = claims("is_hybrid")
has_noops = claims("has_noops")
supports_eagle = claims("supports_eagle")
supports_eagle3 = claims("supports_eagle3")


def supports_any_eagle(model: Any) -> bool:
    return supports_eagle(model) or supports_eagle3(model)


is_pooling_model = claims("is_pooling_model")


def is_mixture_of_experts(model: Any) -> bool:
    return isinstance(model, MARKERS["is_mixture_of_experts"])


def attn_type(kind: str) -> Callable[[C], C]:
    """Class decorator: who attends to whom."""
    return _setting("attn_type", kind)


def default_pooling_type(kind: str | None = None, *, seq_pooling_type: str | None = None, **other: Any) -> Any:
    """Class decorator: how a pooling model of this class pools where nobody says otherwise."""
    return _setting("default_pooling_type", seq_pooling_type or kind or "LAST")


def _setting(name: str, value: str) -> Callable[[C], C]:
    def decorate(model_class: C) -> C:
        setattr(model_class, name, value)
        return model_class

    return decorate
