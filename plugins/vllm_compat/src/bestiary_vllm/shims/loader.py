"""`AutoWeightsLoader` with the older keywords, and the functions that load single parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from bestiary.nn import AutoWeightsLoader as CoreAutoWeightsLoader
from bestiary.nn import default_weight_loader, get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size
from bestiary.nn.weights.fill import count_use
from bestiary_vllm.said import old_keyword

LoaderFunction = Callable[[torch.Tensor, torch.Tensor], None]


class AutoWeightsLoader(CoreAutoWeightsLoader):
    """Core's. What a tied embedding's other name brings is left out, as vLLM does."""

    def __init__(
        self,
        module: nn.Module,
        *,
        skip_prefixes: Sequence[str] | None = None,
        skip_substrs: Sequence[str] | None = None,
        ignore_unexpected_prefixes: Sequence[str] | None = None,
        ignore_unexpected_suffixes: Sequence[str] | None = None,
    ) -> None:
        for name, given in (("skip_prefixes", skip_prefixes), ("skip_substrs", skip_substrs)):
            if given:
                old_keyword("AutoWeightsLoader", name, "a WeightsMapper maps what is left out to None now")
        super().__init__(module, skip_prefixes, skip_substrs, ignore_unexpected_prefixes, ignore_unexpected_suffixes)
        self._tied = _later_names(module)

    def _without_skipped(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in super()._without_skipped(weights):
            if name in self._tied:
                count_use()
            else:
                yield name, tensor


def _later_names(module: nn.Module) -> set[str]:
    """The names of parameters of embeddings under which an earlier one's parameter is met again."""
    seen: dict[int, str] = {}
    later = set()
    for name, param in module.named_parameters(remove_duplicate=False):
        if seen.setdefault(id(param), name) != name:
            later.add(name)
    return later


def row_parallel_weight_loader(param: torch.Tensor, loaded_weight: torch.Tensor) -> None:
    """This rank's rows of a checkpoint tensor; a vector is the same on every rank."""
    if param.dim() == 1:
        default_weight_loader(param, loaded_weight)
    else:
        sharded_weight_loader(0)(param, loaded_weight)


def sharded_weight_loader(shard_axis: int) -> LoaderFunction:
    """A loader of this rank's part of a checkpoint tensor, along one dimension."""

    def load(param: torch.Tensor, loaded_weight: torch.Tensor) -> None:
        size = param.shape[shard_axis]
        if get_tensor_model_parallel_world_size() > 1:
            loaded_weight = loaded_weight.narrow(shard_axis, get_tensor_model_parallel_rank() * size, size)
        default_weight_loader(param, loaded_weight)

    return load


def composed_weight_loader(loader: LoaderFunction, fn: Callable[[torch.Tensor], torch.Tensor]) -> LoaderFunction:
    """A loader that puts the parameter through a function once it is filled."""

    def load(param: torch.Tensor, loaded_weight: torch.Tensor) -> None:
        loader(param, loaded_weight)
        param.data.copy_(fn(param))

    return load


def make_attention_sink(num_heads: int, dtype: torch.dtype | None = None) -> nn.Parameter:
    """One sink logit for each of this rank's heads."""
    sink = nn.Parameter(torch.empty(num_heads, dtype=dtype), requires_grad=False)
    sink.weight_loader = sharded_weight_loader(0)  # type: ignore[attr-defined]
    return sink


def maybe_remap_kv_scale_name(name: str, params_dict: dict[str, Any]) -> str | None:
    """The parameter that a checkpoint's scale of the KV cache is meant for; None where the model has none.

    Core takes these scales out of the stream before a model sees it, so this is asked about other names, mostly.
    """
    if not name.endswith(("_scale", ".scale", "_zero_point")) or name in params_dict:
        return name
    parts = name.rsplit(".", 2)
    if name.endswith(".kv_scale"):
        parts = [*name.rsplit(".", 1)[:1], "attn", "k_scale"]
    elif parts[-1] in ("k_scale", "v_scale", "q_scale", "k_zero_point", "v_zero_point"):
        parts = [*parts[:-1], "attn", parts[-1]]
    elif parts[-1] == "output_scale":
        parts = [parts[0], "attn", f"{parts[1][0]}_scale"]
    else:
        return name
    meant = ".".join(parts)
    return meant if meant in params_dict else None
