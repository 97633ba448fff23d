"""Helpers of vLLM's `models.utils` around layers, stages and names of weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from bestiary.nn import PPMissingLayer, get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size
from bestiary.nn.weights.fill import count_use


class StageMissingLayer(nn.Module):
    """Stands where a part of a model was left out; the part can be looked at, and not called."""

    def __init__(self, stage_name: str, module: nn.Module | None = None) -> None:
        super().__init__()
        self.stage_name = stage_name
        self.__dict__["module"] = module  # not a child: it has no weights to be loaded

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["module"], name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(f"{self.stage_name!r} was left out of this model, and cannot be called")


@contextmanager
def no_init_weights(
    module: nn.Module,
    placeholder: Callable[[nn.Module], nn.Module],
    *,
    targets: type[nn.Module] | tuple[type[nn.Module], ...] | None = None,
) -> Iterator[None]:
    """Meanwhile children that `module` is given, or all of the kinds `targets`, become what `placeholder` makes."""

    def replaced(parent: nn.Module, name: str, child: nn.Module | None) -> nn.Module | None:
        if child is not None and (parent is module if targets is None else isinstance(child, targets)):
            return placeholder(child)
        return child

    handle = register_module_module_registration_hook(cast(Callable[..., None], replaced))
    try:
        yield
    finally:
        handle.remove()


def get_pp_missing_layer_names(model: nn.Module) -> list[str]:
    """Prefixes of the parameters that other pipeline stages hold."""
    return [f"{name}." for name, each in model.named_modules() if isinstance(each, PPMissingLayer)]


def get_spec_layer_idx_from_weight_name(config: Any, weight_name: str) -> int | None:
    """The index of the draft layer (multi-token prediction) that a checkpoint's tensor belongs to; None otherwise."""
    first, count = config.num_hidden_layers, getattr(config, "num_nextn_predict_layers", None) or 0
    for index in range(first, first + count):
        if weight_name.startswith(
            (f"model.layers.{index}.", f"layers.{index}.", f"model.language_model.layers.{index}.")
        ):
            return index
    return None


def skip_spec_layers(weights: Iterable[tuple[str, torch.Tensor]], config: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Without the tensors of draft layers."""
    for name, tensor in weights:
        if get_spec_layer_idx_from_weight_name(config, name) is None:
            yield name, tensor
        else:
            count_use()


def spec_decode_needs_target_embed(vllm_config: Any, *, include_mtp: bool = False) -> bool:
    """Whether a draft model on the last stage shares the first stage's embedding: there are no drafts."""
    return vllm_config.speculative_config is not None


def sequence_parallel_chunk(x: torch.Tensor) -> torch.Tensor:
    """This tensor-parallel rank's equal part of the tokens ``[tokens, …]``, padded with zeros to be divisible."""
    ranks = get_tensor_model_parallel_world_size()
    if ranks == 1:
        return x
    padded = F.pad(x, (0, 0) * (x.dim() - 1) + (0, -len(x) % ranks))
    return padded.chunk(ranks)[get_tensor_model_parallel_rank()].clone()


def fast_topk(values: torch.Tensor, topk: int, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """``torch.topk``: (values, indices)."""
    return torch.topk(values, topk, dim=dim)


def cast_overflow_tensors(tensors: torch.Tensor, offset: float = 1000) -> torch.Tensor:
    """Infinite numbers, and what is not a number, brought back into the dtype's range less `offset`."""
    if tensors.isinf().any() or tensors.isnan().any():
        limit = torch.finfo(tensors.dtype).max - offset
        return tensors.clamp(-limit, limit)
    return tensors


def fused_act_quant(act_fn: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, layer: nn.Module) -> torch.Tensor:
    """The activation; whatever quantizes its result is the next layer's own."""
    return act_fn(x)
