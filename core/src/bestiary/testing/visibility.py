"""What a configuration would hide: sizes at which a mistake computes the same."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from .compare import ATOL
from .reference import reference_logits
from .workbench import LENGTHS, LONGEST, TOKENS

MIN_LAYERS = 2
MIN_VOCABULARY = 32
VISIBLE = 10 * ATOL
"""How much the logits must move when a weight changes by a tenth."""
MIN_SPREAD = 0.1
"""Of the logits: their standard deviation."""


def what_is_hidden(config: Any) -> Iterator[str]:
    """Mistakes that a model of this configuration object could not show, one line each."""
    layers = _number(config, "num_hidden_layers")
    if layers is not None and layers < MIN_LAYERS:
        yield f"num_hidden_layers = {layers}: too small to show layers in a wrong order; at least {MIN_LAYERS}"
    vocabulary = _number(config, "vocab_size")
    if vocabulary is not None and vocabulary < MIN_VOCABULARY:
        yield f"vocab_size = {vocabulary}: too small to show a wrong choice of tokens; at least {MIN_VOCABULARY}"
    longest = LENGTHS[-1] + TOKENS
    length = _number(config, "max_position_embeddings")
    if length is not None and length < longest:
        yield f"max_position_embeddings = {length}: shorter than prompt and answer together, {longest} tokens"
    if length is not None and length > LONGEST:
        yield f"max_position_embeddings = {length}: no prompt is so long, so its end does not show; at most {LONGEST}"
    window = _number(config, "sliding_window")
    if window is not None and window >= LENGTHS[-1] and getattr(config, "use_sliding_window", True):
        yield f"sliding_window = {window}: never cuts anything off prompts of {LENGTHS[-1]} tokens; at most 16, or None"
    experts = _number(config, "num_local_experts") or _number(config, "num_experts")
    chosen = _number(config, "num_experts_per_tok")
    if experts is not None and chosen is not None and 0 < experts <= chosen:
        yield f"num_experts_per_tok = {chosen} of {experts}: all are chosen, so a wrong router does not show"
    hidden, inner = _number(config, "hidden_size"), _number(config, "intermediate_size")
    if hidden is not None and hidden == inner:
        yield f"hidden_size = intermediate_size = {hidden}: matrices put the wrong way round would fit"


def _number(config: Any, name: str) -> int | None:
    value = getattr(config, name, None)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def too_flat(logits: torch.Tensor) -> Iterator[str]:
    """A line where logits hardly differ, so that neither does what a mistake makes of them."""
    spread = float(logits.std())
    if spread < MIN_SPREAD:
        yield f"the reference's logits differ by {spread:.2g} only: larger weights show more; at least {MIN_SPREAD}"


@torch.inference_mode()
def without_effect(model: nn.Module, token_ids: list[int]) -> dict[str, float]:
    """Parameters of `model`, numbers replaced by ``*``, that do not move its logits → by how much they do.

    All parameters of one form are raised by a tenth, and by a little, together.
    """
    groups: dict[str, list[torch.Tensor]] = {}
    for name, param in model.named_parameters():
        groups.setdefault(re.sub(r"(?<=\.)\d+(?=\.)", "*", name), []).append(param.data)
    before = reference_logits(model, token_ids)
    found = {}
    for form, params in groups.items():
        kept = [tensor.clone() for tensor in params]
        for tensor in params:
            tensor.mul_(1.1).add_(_ramp(tensor))
        moved = float((reference_logits(model, token_ids) - before).abs().max())
        for tensor, old in zip(params, kept, strict=True):
            tensor.copy_(old)
        if moved < VISIBLE:
            found[form] = moved
    return found


def _ramp(param: torch.Tensor) -> torch.Tensor:
    """From 0 to 0.05 along the tensor: a shift that is no mere scale."""
    return torch.linspace(0, 0.05, param.numel(), dtype=param.dtype).view(param.shape)
