"""The pooler of a built model: which one it is, what it forbids, and what it made in a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from bestiary.api.config import VllmConfig
from bestiary.api.conformance import is_pooling_model
from bestiary.api.errors import BrokenPlugin, ModelError
from bestiary.nn.attention.backend import AttentionType
from bestiary.nn.attention.base import AttentionLayerBase
from bestiary.nn.embedding import ParallelLMHead
from bestiary.nn.pooling import DispatchPooler, Pooler, PoolingMetadata

from .notices import notice
from .plan import PooledVector
from .pooling import PoolingOffer
from .request_state import RequestState

_BIDIRECTIONAL = (AttentionType.ENCODER, AttentionType.ENCODER_ONLY)


def pooler_of(model: nn.Module, config: VllmConfig) -> Pooler | None:
    """The model's own pooler, or one over its hidden states; None where text is generated.

    Raises:
        BrokenPlugin: the class claims to pool and has no `Pooler`.
    """
    pooler_config = config.model_config.pooler_config
    if pooler_config is None:
        return None
    if not is_pooling_model(type(model)):
        return DispatchPooler.for_embedding(pooler_config)
    own = getattr(model, "pooler", None)
    if not isinstance(own, Pooler) or not own.get_supported_tasks():
        raise BrokenPlugin(
            f"{type(model).__name__}.pooler is no pooler", field="pooler", value=type(own).__name__,
            limit="a bestiary.nn.Pooler with a task, on every pipeline stage",
        )  # fmt: skip
    return own


def offer_of(pooler: Pooler | None, model: nn.Module, config: VllmConfig) -> PoolingOffer | None:
    """What requests may ask of the pooler."""
    if pooler is None:
        return None
    return PoolingOffer(tuple(pooler.get_supported_tasks()), pooler.embedding_size or _hidden_size(model, config))


def _hidden_size(model: nn.Module, config: VllmConfig) -> int | None:
    """Width of a hidden state: what the head takes, where there is one."""
    heads = [module.embedding_dim for module in model.modules() if isinstance(module, ParallelLMHead)]
    named = getattr(config.model_config.hf_text_config, "hidden_size", None)
    return heads[0] if heads else named if isinstance(named, int) else None


def with_pooler(config: VllmConfig, model: nn.Module, pooler: Pooler | None) -> VllmConfig:
    """The configuration without what the model's attention, or its pooler, cannot do: a text read in both directions is
    computed whole, and hidden states of cached tokens are nowhere.

    Raises:
        ModelError: the model reads in both directions, and was to generate.
    """
    layers = {each.layer_name: each for each in model.modules() if isinstance(each, AttentionLayerBase)}
    both = [name for name, layer in layers.items() if layer.spec.attn_type in _BIDIRECTIONAL]
    if both and pooler is None:
        raise ModelError(
            "this model reads in both directions, so it cannot generate", code="UNSUPPORTED_LAYER", field=both[0],
            value=layers[both[0]].spec.attn_type.value, fix="runner='pooling' (--runner pooling)",
        )  # fmt: skip
    ahead = any(layer.reads_ahead for layer in layers.values())
    scheduler, cache = config.scheduler_config, config.cache_config
    if (both or ahead) and scheduler.enable_chunked_prefill:
        notice("texts are read in both directions, so none is computed in pieces: no chunked prefill")
        scheduler = replace(scheduler, enable_chunked_prefill=False)
    if pooler is not None and (both or pooler.reads_all) and cache.enable_prefix_caching:
        notice("every token's hidden state is pooled, and cached tokens have none: no prefix cache")
        cache = replace(cache, enable_prefix_caching=False)
    elif ahead and cache.enable_prefix_caching:
        notice("a prompt's tokens see those after them, so equal beginnings are not equal: no prefix cache")
        cache = replace(cache, enable_prefix_caching=False)
    return replace(config, scheduler_config=scheduler, cache_config=cache)


def checked_vectors(pooler: Pooler, made: object, metadata: PoolingMetadata) -> list[torch.Tensor]:
    """What the pooler gave for each prompt that ends in a step.

    Raises:
        BrokenPlugin: it is not a vector each.
    """
    found = made if isinstance(made, list) else []
    right = len(found) == len(metadata.due) and all(
        isinstance(each, torch.Tensor) and each.dim() == 1 and each.is_floating_point() for each in found
    )
    if not right or not isinstance(made, list):
        shown = [list(each.shape) if isinstance(each, torch.Tensor) else type(each).__name__ for each in found]
        raise BrokenPlugin(
            f"{type(pooler).__name__} returned what it must not", field="pooler",
            value=shown if isinstance(made, list) else type(made).__name__,
            limit=f"a list of {len(metadata.due)} vectors of floating-point numbers",
        )  # fmt: skip
    return found


def pooled(states: Sequence[RequestState], vectors: Sequence[torch.Tensor]) -> dict[str, PooledVector]:
    """The vectors as they are sent, by request; one that holds NaN or Inf, or is not as long as was asked, is an error
    of its request alone."""
    found = {}
    for state, vector in zip(states, vectors, strict=True):
        wanted = None if state.pooling is None else state.pooling.dimensions
        if wanted is not None and len(vector) != wanted:
            error: str | None = f"{wanted} dimensions were asked for, and the pooler gives {len(vector)}"
        else:
            error = None if bool(torch.isfinite(vector).all()) else "numerical"
        data = b"" if error else vector.float().cpu().contiguous().numpy().tobytes()
        found[state.request_id] = PooledVector(data, error)
    return found
