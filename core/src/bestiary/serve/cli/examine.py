"""What a model is, what it needs and what would run it, found out without reading weight data: `inspect`'s facts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bestiary.api.errors import BestiaryError

from .output import sentence
from .rank_plan import plan_document, problem_of

if TYPE_CHECKING:
    from torch import nn

    from bestiary.api.config import VllmConfig
    from bestiary.engine.arguments import EngineArgs
    from bestiary.engine.build import EngineBuilder
    from bestiary.engine.memory_plan import MemoryPlan
    from bestiary.nn.linear_base import LinearBase


def examine(args: EngineArgs, memory_per_rank: int | None = None) -> dict[str, Any]:
    """All that can be known before loading, as data: bytes, counts and names. No rank is started.

    Of a model divided among ranks, `config` and `weights` are the whole's, `kv_cache` is that of the rank with the
    least room, and `plan` is every rank's.
    """
    from bestiary.engine.binding import bind_attention, target_of
    from bestiary.engine.build import EngineBuilder
    from bestiary.engine.loader.load import build_model
    from bestiary.engine.memory_plan import plan_memory
    from bestiary.nn.ops.registry import choose_ops

    builder = EngineBuilder(_without_download(args), together=False)
    model_class, config = builder.configure()
    model = build_model(model_class, config)
    ops = choose_ops(target_of(config), config.op_config.implementations, builder.hooks.all("op_implementations"))
    bind_attention(model, config, builder.hooks.all("attention_backends"))
    with ops.active():
        plan = plan_memory(model_class, config, memory_per_rank)
        packed = _packed(model)
    weights = _weights(model)
    adapters = _adapters(builder, model, config)
    problems = [_no_weights(builder), problem_of(plan)]
    return {
        "model": args.model,
        "source": _source(builder),
        "plugin": _plugin(builder, config, model_class),
        "config": _config(builder, model, config),
        "weights": weights | {"stored": _stored(builder, model, args)},
        "adapters": adapters,
        "kv_cache": _kv_cache(model, config, plan),
        "plan": plan_document(plan, given=memory_per_rank is not None),
        "runs_on": _runs_on(builder, model, config) | {"packed_layers": packed, "ops": ops.names},
        "tokenizer": _tokenizer(builder, args),
        "notices": [text for text in problems if text is not None],
    }


def _without_download(args: EngineArgs) -> EngineArgs:
    """For a hub id: settings under which only the small files are fetched. A GGUF's metadata is in the file itself."""
    local = Path(args.model).expanduser().exists()
    return args if local or "/" not in args.model or ":" in args.model else replace(args, load_format="dummy")


def _source(builder: EngineBuilder) -> dict[str, Any]:
    source = builder.description.source
    files = source.weight_files
    return {
        "kind": source.kind,
        "path": str(source.root),
        "files": [path.name for path in files],
        "bytes": {path.name: path.stat().st_size for path in files},
    }


def _plugin(builder: EngineBuilder, config: VllmConfig, model_class: type) -> dict[str, Any]:
    architecture = config.model_config.architecture
    registry, chosen = builder.registry, builder.args.plugin
    distribution = registry.entry(architecture, chosen).distribution
    alias = builder.description.alias
    target = None if alias is None else registry.entry(alias.alias.architecture, chosen).distribution
    return {
        "architecture": architecture,
        "alias_of": None if alias is None else alias.alias.architecture,
        "class_package": None if target is None else target.name,
        "class": f"{model_class.__module__}:{model_class.__qualname__}",
        "package": None if distribution is None else distribution.name,
        "version": None if distribution is None else distribution.version,
    }


def _config(builder: EngineBuilder, model: nn.Module, config: VllmConfig) -> dict[str, Any]:
    """Asked of the model's layers; only what no layer knows is read from the configuration."""
    from bestiary.engine.binding import vocab_size
    from bestiary.engine.model_layers import attention_layers

    specs = [layer.spec for layer in attention_layers(model).values()]
    text = config.model_config.hf_text_config
    rope = getattr(text, "rope_parameters", None)
    return {
        "attention_layers": len(specs),
        "hidden_size": getattr(text, "hidden_size", None),
        "heads": _same([spec.num_heads for spec in specs]),
        "kv_heads": _same([spec.num_kv_heads for spec in specs]),
        "head_size": _same([spec.head_size for spec in specs]),
        "sliding_window": _same([spec.sliding_window for spec in specs]),
        "vocab_size": vocab_size(model, config),
        "max_model_len": config.model_config.max_model_len,
        "rope": dict(rope) if isinstance(rope, dict) else None,
        "model_type": builder.description.data.get("model_type"),
    }


def _same(values: list[Any]) -> Any:
    """The one value all layers have, or the list of distinct ones."""
    distinct = list(dict.fromkeys(values))
    return distinct[0] if len(distinct) == 1 else distinct or None


def _weights(model: nn.Module) -> dict[str, Any]:
    """Parameters and their bytes in memory; a tensor that two modules share counts once."""
    from bestiary.nn.weights.fill import num_weights

    parameters = list(model.parameters())
    shared = sum(1 for _ in model.named_parameters(remove_duplicate=False)) - len(parameters)
    by_dtype: dict[str, int] = {}
    for each in parameters:
        name = str(each.dtype).removeprefix("torch.")
        by_dtype[name] = by_dtype.get(name, 0) + each.numel() * each.dtype.itemsize
    kept = sum(buffer.numel() * buffer.dtype.itemsize for buffer in model.buffers())
    return {
        "parameters": sum(num_weights(each) for each in parameters),
        "shared_tensors": shared,
        "bytes": sum(by_dtype.values()) + kept,
        "bytes_by_dtype": by_dtype,
    }


def _stored(builder: EngineBuilder, model: nn.Module, args: EngineArgs) -> list[dict[str, Any]]:
    """What the files hold, by the format's own names of types; empty where no weights are on this machine."""
    from bestiary.engine.loader.checksum import verify_files
    from bestiary.engine.loader.weights import open_weights

    description = builder.description
    if args.verify:
        verify_files(description.source.weight_files)
    if not description.source.weight_files or args.load_format == "dummy":
        return []
    stream = open_weights(
        description.source,
        load_format=args.load_format,
        formats=builder.hooks.all("weight_formats"),
        gguf_declaration=description.gguf,
    )
    groups: dict[str, dict[str, Any]] = {}
    for tensor in stream.tensors.values():
        group = groups.setdefault(
            tensor.dtype, {"format": stream.format, "type": tensor.dtype, "tensors": 0, "bytes": 0}
        )
        group["tensors"] += 1
        group["bytes"] += tensor.nbytes
    return sorted(groups.values(), key=lambda group: -int(group["bytes"]))


def _no_weights(builder: EngineBuilder) -> str | None:
    """Why loading would find no weights. A plugin's format may find them where we see none."""
    from bestiary.engine.loader.weight_files import refuse_without_weights

    source = builder.description.source
    if source.weight_files or builder.args.load_format not in ("auto", "safetensors", "gguf"):
        return None
    return sentence(refuse_without_weights(source.root))


def _adapters(builder: EngineBuilder, model: nn.Module, config: VllmConfig) -> dict[str, Any] | None:
    """Slots for adapters, as they are or as the defaults would make them; None where the class has none."""
    from bestiary.api.config import LoRAConfig
    from bestiary.api.conformance import supports_lora
    from bestiary.engine.binding import adapter_slots, check_lora
    from bestiary.engine.loader.lora_config import read_adapter_config
    from bestiary.engine.loader.lora_files import adapter_directory

    check_lora(model, config)
    if not supports_lora(model):
        return None
    wanted = config.lora_config or LoRAConfig()
    slots = adapter_slots(model, replace(config, lora_config=wanted), builder.description.alias, "meta")
    given = builder.args.lora_modules.items()
    return {
        "enabled": config.lora_config is not None,
        "max_loras": wanted.max_loras,
        "max_lora_rank": wanted.max_lora_rank,
        "bytes": 0 if slots is None else slots.nbytes,
        "targets": [] if slots is None else slots.target_names,
        "given": [
            {"name": name, "path": path, "rank": read_adapter_config(adapter_directory(path)).rank}
            for name, path in given
        ],
    }


def _kv_cache(model: nn.Module, config: VllmConfig, plan: MemoryPlan) -> dict[str, Any]:
    """The cache that the rank with the least room would allocate once the weights are in memory."""
    from bestiary.engine.model_layers import kv_cache_specs

    narrow, block_size = plan.bottleneck, config.cache_config.block_size
    blocks = plan.blocks if problem_of(plan) is None else None
    return {
        "block_size": block_size,
        "dtype": _same([str(spec.dtype).removeprefix("torch.") for spec in kv_cache_specs(model).values()]),
        "bytes_per_token": narrow.footprint.kv_bytes_per_token,
        "free_memory": narrow.memory,
        "blocks": blocks,
        "tokens": None if blocks is None else blocks * block_size,
        "bytes": None if blocks is None else blocks * narrow.block_bytes,
        "sequences_of_max_model_len": plan.sequences(blocks),
        **({"state_rows": plan.state_rows, "state_bytes": narrow.state_bytes} if plan.state_rows else {}),
    }


def _runs_on(builder: EngineBuilder, model: nn.Module, config: VllmConfig) -> dict[str, Any]:
    from bestiary.engine.model_layers import attention_layers

    recorder, why_not = builder.recording(model, config)
    backends = [layer.backend.name for layer in attention_layers(model).values() if layer.backend is not None]
    return {
        "device": config.device_config.device,
        "dtype": str(config.model_config.dtype).removeprefix("torch."),
        "quantization": None if config.quant_config is None else config.quant_config.name,
        "quantized_layers": None if config.quant_config is None else _methods(model),
        "attention_backend": _same(backends),
        "step_recorder": f"none: {why_not}" if recorder is None else recorder.name,
    }


def _methods(model: nn.Module) -> str:
    """How many layers have each method, those of experts included."""
    return _counted(str(layer.quant_method) for layer in _linear_layers(model))


def _packed(model: nn.Module) -> str | None:
    """How many layers, tables of embeddings included, the ops in force pack in which form; None: they pack none. One
    whose weight is another's counts once."""
    from bestiary.nn.embedding import VocabParallelEmbedding

    tables = [each for each in model.modules() if isinstance(each, VocabParallelEmbedding)]
    layers: dict[int, Any] = {id(layer.weight): layer for layer in [*_linear_layers(model), *tables]}
    packed = [layer.quant_method.packed(layer) for layer in layers.values()]
    forms = ["not packed" if each is None else each.form for each in packed]
    return _counted(forms) if any(each is not None for each in packed) else None


def _linear_layers(model: nn.Module) -> list[LinearBase]:
    """Those of experts included."""
    from bestiary.nn.linear_base import LinearBase
    from bestiary.nn.moe import FusedMoE

    layers = [each for each in model.modules() if isinstance(each, LinearBase)]
    for module in model.modules():
        if isinstance(module, FusedMoE):
            layers += module.expert_layers
    return layers


def _counted(words: Iterable[str]) -> str:
    from collections import Counter

    return ", ".join(f"{count} {word}" for word, count in Counter(words).most_common())


def _tokenizer(builder: EngineBuilder, args: EngineArgs) -> dict[str, Any]:
    from bestiary.serve.text.tokenizer import load_tokenizer

    description = builder.description
    try:
        if args.tokenizer is not None:
            tokenizer = load_tokenizer(Path(args.tokenizer), hooks=builder.hooks)
        else:
            root = description.source.root
            tokenizer = load_tokenizer(root, metadata=description.metadata, hooks=builder.hooks)
    except BestiaryError as error:
        return {"tokens": None, "chat_template": False, "problem": sentence(error)}
    return {"tokens": tokenizer.vocab_size, "chat_template": tokenizer.chat_template is not None, "problem": None}
