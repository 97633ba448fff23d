"""Which quantization a model has: declared in its `config.json`, or asked for by the `quantization` argument."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from bestiary.api.errors import ConfigError, ModelError, UsageError
from bestiary.api.ggml_types import GgmlType
from bestiary.api.hook_manager import HookManager
from bestiary.engine.arguments import EngineArgs
from bestiary.nn.gguf.dequant import FLOATS
from bestiary.nn.quant import QuantizationConfig

from .config_check import QUANTIZATION_FIELDS
from .description import ModelDescription
from .safetensors_reader import tensor_index
from .vllm_config import choose_device

_HOOK = "quantization_methods"


def choose_quantization(
    args: EngineArgs, description: ModelDescription, hooks: HookManager, packing: Collection[str] = ()
) -> QuantizationConfig | None:
    """The `QuantizationConfig`, told what it must know of the checkpoint; None for a plain model.

    Where nothing is asked for, the blocks of a GGUF file stay as they are if their products read them packed (`packing`
    names such ops), and are decoded if not; "none" always decodes them.

    What a `config.json` beside a GGUF file declares is of other weights than the file's.

    Raises:
        UsageError: a method is asked for and the checkpoint has another. ModelError: it cannot run here.
    """
    declared = None if description.source.kind == "gguf" else declaration(description.data)
    name = args.quantization or (declared or {}).get("quant_method")
    if name is None and "linear_gguf" in packing and _has_blocks(description):
        name = "gguf"
    if name is None or (name == "none" and declared is None):
        return None
    if declared is not None and declared["quant_method"] != name:
        raise UsageError(
            "the checkpoint is quantized already, by another method",
            field="quantization", value=name, limit=f"{declared['quant_method']}, or nothing",
            fix="leave quantization out",
        )  # fmt: skip
    method: type[QuantizationConfig] = hooks.get(_HOOK, name)
    device = choose_device(args.device)
    if reason := method.why_not(device):
        able = [each for each, why in where_methods_run(hooks, device).items() if why is None]
        raise ModelError(
            f"quantization {name} cannot run on {device}: {reason}",
            field="quantization", value=name, limit=f"on {device}: {', '.join(able) or 'none'}",
        )  # fmt: skip
    made = method.from_config(declared or description.quantization_config(name))
    made.stored = _stored_names(args, description)
    if description.alias is not None and description.source.kind != "gguf":
        made.mappers = [description.alias.mapper()]
    return made


def _has_blocks(description: ModelDescription) -> bool:
    """Whether a GGUF file has quantized tensors."""
    if description.source.kind != "gguf":
        return False
    tensors = description.quantization_config("gguf").get("tensors", {})
    return any(GgmlType[kind] not in FLOATS for kind in tensors.values())


def declaration(data: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The checked object in `config.json` that says how the checkpoint is quantized."""
    return next((data[name] for name in QUANTIZATION_FIELDS if data.get(name) is not None), None)


def where_methods_run(hooks: HookManager, device: str) -> dict[str, str | None]:
    """Every registered method → None where it runs on `device`, otherwise the reason."""
    return {name: method.why_not(device) for name, method in hooks.all(_HOOK).items()}


def quantizes_at_load(hooks: HookManager, name: str) -> bool:
    """Whether a method can be asked for where a checkpoint is plain: it makes something of an empty declaration."""
    try:
        hooks.get(_HOOK, name).from_config({})
    except ConfigError:
        return False
    return True


def _stored_names(args: EngineArgs, description: ModelDescription) -> Collection[str]:
    """The names in safetensors files that are on this machine and will be read."""
    files = description.source.weight_files
    if args.load_format not in ("auto", "safetensors") or not files or files[0].suffix != ".safetensors":
        return frozenset()
    return frozenset(tensor_index(files))
