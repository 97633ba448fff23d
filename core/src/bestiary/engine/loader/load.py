"""Two stages in the life of a model (resolve → build → place → load → finish): building, placed, and loading."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from bestiary.api.config import VllmConfig
from bestiary.api.errors import BestiaryError, BrokenPlugin
from bestiary.api.importing import cause
from bestiary.api.registry import ModelRegistry
from bestiary.engine.notices import notice
from bestiary.nn.attention.scales import CacheScales
from bestiary.nn.placement import materialize, place
from bestiary.nn.quant import QuantizationConfig
from bestiary.nn.quant.gguf import GgufConfig
from bestiary.nn.scope import build_scope
from bestiary.nn.weights import load_complete
from bestiary.nn.weights.renames import Renames

from .checksum import verify_files
from .description import ModelDescription
from .progress import load_progress
from .weights import NamedTensors, Opener, WeightStream, open_weights

_SHOWN = 8


def build_model(model_class: type, vllm_config: VllmConfig) -> nn.Module:
    """Construct the class with all parameters on the meta device, named and laid out. Costs no memory. What the
    constructor imports, it imports as its module did (`Registry.importing`).

    Raises:
        BrokenPlugin: the constructor raised something that is not one of our errors (the cause is chained), or made
            something that is no torch module.
    """
    with build_scope(vllm_config):
        hint = "a field the class reads may be missing from config.json"
        with _blamed(model_class, "could not be built", hint), ModelRegistry.importing():
            model: nn.Module = model_class(vllm_config=vllm_config)
        if not isinstance(model, nn.Module):
            raise BrokenPlugin(
                f"{model_class.__name__} is no torch.nn.Module", field=_name(model_class), limit="a torch.nn.Module"
            )
        place(model, vllm_config.quant_config)
    return model


@contextmanager
def _blamed(model_class: type, what: str, hint: str) -> Iterator[None]:
    """Whatever a plugin raises becomes BrokenPlugin, the cause chained; our own errors and Ctrl-C pass."""
    try:
        yield
    except (BestiaryError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise BrokenPlugin(
            f"{model_class.__name__} {what}: {cause(error)}",
            field=_name(model_class),
            fix=f"{hint}; --debug shows the traceback",
        ) from error


def _name(model_class: type) -> str:
    return f"{model_class.__module__}:{model_class.__qualname__}"


def load_model(
    model: nn.Module, vllm_config: VllmConfig, description: ModelDescription, formats: Mapping[str, Opener]
) -> None:
    """Fill a built model. Peak memory: the model and one tensor."""
    load = vllm_config.load_config
    if load.verify:
        with load_progress("verifying weights", enabled=load.progress) as progress:
            verify_files(description.source.weight_files, progress)
    with load_progress("loading weights", enabled=load.progress) as progress:
        stream = open_weights(
            description.source,
            load_format=load.load_format,
            formats=formats,
            gguf_declaration=description.gguf,
            parameters=_parameters(model),
            keep=_kept_blocks(vllm_config),
            allow_nonfinite=load.allow_nonfinite,
            progress=progress,
            notify=notice,
        )
        materialize(model, torch.device(vllm_config.device_config.device))
        if stream.format == "dummy":
            _fill_in_place(model, stream)
        else:
            own, renames = hasattr(model, "load_weights"), _renames(description, stream)
            scales = CacheScales(model, _new_name(model, renames))
            with _blamed(type(model), "could not be loaded", "its load_weights failed") if own else nullcontext():
                load_complete(model, _read(stream, scales.taken(iter(stream)), vllm_config), *renames)
            for text in scales.notices():
                notice(text)


def _kept_blocks(vllm_config: VllmConfig) -> frozenset[str]:
    """The tensors that stay in blocks; what no layer of a whole model keeps is told."""
    config = vllm_config.quant_config
    if not isinstance(config, GgufConfig):
        return frozenset()
    if config.decoded and vllm_config.parallel_config.pipeline_parallel_size == 1:
        shown = ", ".join(config.decoded[:_SHOWN]) + (" …" if len(config.decoded) > _SHOWN else "")
        notice(f"{len(config.decoded)} tensor(s) in blocks are decoded, since no layer keeps them: {shown}")
    return frozenset(config.kept)


def _read(stream: WeightStream, weights: NamedTensors, vllm_config: VllmConfig) -> Iterable[tuple[str, torch.Tensor]]:
    """The `weights` of a stream, a quantized checkpoint's tensors in the layout that its layers have here."""
    config: QuantizationConfig | None = vllm_config.quant_config
    if config is None:
        return weights
    config.stored = frozenset(stream.tensors)
    return config.checkpoint_weights(weights)


def _renames(description: ModelDescription, stream: WeightStream) -> list[Renames]:
    """An alias's renames of the checkpoint's tensors; a GGUF file's bear the class's names already."""
    if description.alias is None or not description.alias.alias.weights or stream.format == "gguf":
        return []
    return [Renames(description.alias.mapper(), stream.tensors, description.alias.who)]


def _new_name(model: nn.Module, renames: Sequence[Renames]) -> Callable[[str], str | None]:
    """A checkpoint's name → the model's: by an alias's renames and by the model's own."""
    steps: list[Callable[[str], str | None]] = [each.new_name for each in renames]
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    steps += [] if mapper is None else [mapper.map_name]

    def renamed(name: str) -> str | None:
        found: str | None = name
        for step in steps:
            found = None if found is None else step(found)
        return found

    return renamed


def _parameters(model: nn.Module) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    return {name: (tuple(param.shape), param.dtype) for name, param in model.named_parameters()}


def _fill_in_place(model: nn.Module, stream: Any) -> None:
    """Dummy weights bear the parameters' own names, so no mapping and no fused shards are involved."""
    parameters = dict(model.named_parameters())
    for name, value in stream:
        parameters[name].data.copy_(value)
