"""What one rank's part of a model takes in memory, told from the model as it is built on the meta device.

Weights, buffers and the KV cache are exact: they are what the rank will hold, to the byte. Activations are an upper
estimate (`ACTIVATIONS`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from bestiary.api.config import VllmConfig
from bestiary.nn.embedding import ParallelLMHead, VocabParallelEmbedding
from bestiary.nn.linear_base import LinearBase
from bestiary.nn.lora import attach
from bestiary.nn.moe import FusedMoE
from bestiary.nn.quant.base import UnquantizedLinearMethod
from bestiary.nn.quant.packed import is_packed_later
from bestiary.nn.stack import PPMissingLayer
from bestiary.nn.weights.fill import num_weights

from .layer_states import bytes_per_row
from .memory import bytes_per_block
from .model_layers import attention_layers, kv_cache_specs

ACTIVATIONS = (
    "tokens x (4 x hidden + the inputs and outputs of all products of the largest layer) + rows of logits x "
    "(this rank's vocabulary + twice the whole), and the largest quantized weight once as a plain one. A step has "
    "max_num_batched_tokens tokens and max_num_seqs rows of logits. Attention's masks, and what it gathers of the "
    "cache, come on top."
)
"""The formula of `Footprint.activations`, in words."""
_KEPT = 4
"""Rows of the hidden size that are alive at once: the state, its residual, a norm's output, a sum over ranks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """Bytes, unless said otherwise.

    Attributes:
        parameters: how many. weights: theirs, by dtype. repacked: what is added after loading, for products.
        buffers: tables and the like. adapters: slots for them, however many are taken.
        layers: decoder layers ``[first, end)`` of this stage; None where the model keeps no list of layers.
        experts: physical experts of all layers here, spare copies included, and their part of `weights`.
        kv_bytes_per_token: of all layers here; state_bytes_per_row: of all that keep a state of sequences.
        activations: see `ACTIVATIONS`.
    """

    parameters: int
    weights: dict[str, int]
    repacked: int
    buffers: int
    adapters: int
    layers: tuple[int, int] | None
    experts: int
    expert_bytes: int
    kv_bytes_per_token: int
    state_bytes_per_row: int
    activations: int

    @property
    def weight_bytes(self) -> int:
        return sum(self.weights.values()) + self.repacked

    @property
    def held(self) -> int:
        """What is there before the first request: all but caches and activations."""
        return self.weight_bytes + self.buffers + self.adapters


def footprint(model: nn.Module, config: VllmConfig) -> Footprint:
    """Of a model built under a rank's groups. The ops that will run must be in force: they say what is packed. Where
    adapters are wanted, the model has slots without memory afterwards."""
    activations = _activations(model, config)
    mixtures = [module for module in model.modules() if isinstance(module, FusedMoE)]
    return Footprint(
        parameters=sum(num_weights(each) for each in model.parameters()),
        weights=weights_by_dtype(model),
        repacked=_repacked(model, config.device_config.device),
        buffers=sum(_nbytes(each) for each in model.buffers()) + _counters(mixtures, config),
        adapters=0 if config.lora_config is None else attach(model, config.lora_config, torch.device("meta")).nbytes,
        layers=_layers(model),
        experts=sum(each.placement.num_local for each in mixtures),
        expert_bytes=sum(_nbytes(param) for each in mixtures for param in each.parameters(recurse=False)),
        kv_bytes_per_token=bytes_per_block(kv_cache_specs(model).values(), 1),
        state_bytes_per_row=bytes_per_row(model),
        activations=activations,
    )


def weights_by_dtype(model: nn.Module) -> dict[str, int]:
    """Bytes of parameters; one that two modules share counts once."""
    found: dict[str, int] = {}
    for each in model.parameters():
        name = str(each.dtype).removeprefix("torch.")
        found[name] = found.get(name, 0) + _nbytes(each)
    return found


def _repacked(model: nn.Module, device: str) -> int:
    """What quantization methods and latent attention add; and a head tied to an embedding is packed as a copy, others
    in their place."""
    heads = [module for module in model.modules() if isinstance(module, ParallelLMHead) and hasattr(module, "tied_to")]
    copies = sum(_nbytes(each.weight) for each in heads if is_packed_later(each, device))
    tables = [module for module in model.modules() if isinstance(module, VocabParallelEmbedding)]
    added = sum(each.quant_method.bytes_added(each) for each in tables if not hasattr(each, "tied_to"))
    attention = sum(layer.bytes_added() for layer in attention_layers(model).values())
    return copies + added + attention + sum(layer.quant_method.bytes_added(layer) for layer in _linear_layers(model))


def _counters(mixtures: Sequence[FusedMoE], config: VllmConfig) -> int:
    """Where load is balanced: how often each expert was chosen, in each step of a window."""
    parallel = config.parallel_config
    window = parallel.eplb_config.window_size if parallel.enable_eplb else 0
    return sum(window * each.num_experts for each in mixtures) * torch.int32.itemsize


def _nbytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.dtype.itemsize


def _decoder(model: nn.Module) -> nn.ModuleList | None:
    """The model's list of layers: its longest one."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len) if lists else None


def _layers(model: nn.Module) -> tuple[int, int] | None:
    here = [index for index, layer in enumerate(_decoder(model) or ()) if not isinstance(layer, PPMissingLayer)]
    return (here[0], here[-1] + 1) if here else None


def _activations(model: nn.Module, config: VllmConfig) -> int:
    """See `ACTIVATIONS`."""
    scheduler, itemsize = config.scheduler_config, config.model_config.dtype.itemsize
    tokens = scheduler.max_num_batched_tokens
    rows = min(scheduler.max_num_seqs, tokens)
    hidden = max(
        (each.embedding_dim for each in model.modules() if isinstance(each, VocabParallelEmbedding)), default=0
    )
    layers = [each for each in _decoder(model) or (model,) if not isinstance(each, PPMissingLayer)]
    widest = max((_widths(layer, itemsize) for layer in layers), default=0)
    heads = [module for module in model.modules() if isinstance(module, ParallelLMHead)]
    logits = max((each.num_embeddings_per_partition + 2 * each.org_vocab_size for each in heads), default=0)
    plain = max((_dequantized(layer) for layer in _linear_layers(model)), default=0)
    return int(itemsize * (tokens * (_KEPT * hidden + widest) + rows * logits + plain))


def _widths(layer: nn.Module, itemsize: int) -> float:
    """Inputs and outputs of all products in a layer, for one token, in elements of the model's dtype.

    Experts compute one after the other, each on at most all tokens; what they give is summed in float32.
    """
    width = 0.0
    for module in layer.modules():
        if isinstance(module, LinearBase):
            width += module.input_size_per_partition + module.output_size_per_partition
            width += module.output_size if getattr(module, "gather_output", False) else 0
        elif isinstance(module, FusedMoE):
            first = {type(each): each for each in module.expert_layers}.values()
            width += sum(each.input_size_per_partition + each.output_size_per_partition for each in first)
            width += 3 * module.hidden_size * torch.float32.itemsize / itemsize
    return width


def _linear_layers(model: nn.Module) -> Iterator[LinearBase]:
    for module in model.modules():
        if isinstance(module, LinearBase):
            yield module
        elif isinstance(module, FusedMoE):
            yield from module.expert_layers


def _dequantized(layer: LinearBase) -> int:
    """Elements of the plain weight that a quantized layer may make of its own while it multiplies."""
    if isinstance(layer.quant_method, UnquantizedLinearMethod):
        return 0
    return layer.input_size_per_partition * layer.output_size_per_partition
