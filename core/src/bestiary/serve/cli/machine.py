"""Facts about this machine and what would run on it, as data for `doctor`."""

from __future__ import annotations

import os
import pkgutil
import platform
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bestiary.api.choices import KERNELS

from .output import size

if TYPE_CHECKING:
    from bestiary.api.hook_manager import HookManager
    from bestiary.nn.attention.backend import AttentionSpec

_PACKAGES = ("bestiary", "torch", "transformers", "tokenizers", "safetensors", "huggingface-hub", "triton", "pluggy")
_FLAGS = (
    "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16",
    "amx_tile", "amx_int8", "amx_bf16", "amx_fp16", "asimd", "asimddp", "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip
"""CPU features that kernels ask for, by the names /proc/cpuinfo gives them."""


def load_hooks(plugin: dict[str, str]) -> HookManager:
    from bestiary.api.hook_manager import HookManager
    from bestiary.api.registry import ModelRegistry

    return HookManager(ModelRegistry.installation, plugin).load()


def versions() -> dict[str, str]:
    """Python's, the platform's, and those of the packages that matter; plugins have a table of their own."""
    from bestiary.api.registry import ModelRegistry

    installed = ModelRegistry.installation.versions
    found = {"python": platform.python_version(), "platform": platform.platform()}
    return found | {name: installed.get(name, "not installed") for name in _PACKAGES}


def cpu() -> dict[str, Any]:
    import torch

    text = _read("/proc/cpuinfo")
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    names = {key.strip(): value.strip() for key, value in fields.items()}
    flags = set((names.get("flags") or names.get("Features") or "").split())
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": names.get("model name") or platform.processor() or platform.machine(),
        "cpu_flags": " ".join(flag for flag in _FLAGS if flag in flags) or "unknown",
        "cores": os.cpu_count(),
        "usable_cores": usable,
        "torch_threads": torch.get_num_threads(),
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def memory() -> dict[str, str]:
    from bestiary.engine.memory import free_memory

    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {"memory": size(total), "free_memory": size(free_memory("cpu"))}


def cuda_devices() -> list[dict[str, str]]:
    import torch

    found = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        device = torch.cuda.get_device_properties(index)
        capability = f"{device.major}.{device.minor}"
        found.append({"device": device.name, "capability": capability, "memory": size(device.total_memory)})
    return found


def ops(device: str, hooks: HookManager | None) -> list[dict[str, Any]]:
    """Each op, the implementation chosen for the device's usual dtype, and why the others are not."""
    import torch

    from bestiary.engine.loader.vllm_config import choose_device
    from bestiary.nn import ops as package
    from bestiary.nn.ops.registry import OPS, Target, by_op, choose_ops

    for module in pkgutil.iter_modules(package.__path__):
        import_module(f"{package.__name__}.{module.name}")
    chosen_device = choose_device(device)
    target = Target(chosen_device, torch.float32 if chosen_device == "cpu" else torch.bfloat16)
    offered = {} if hooks is None else hooks.all("op_implementations")
    chosen, versions = choose_ops(target, {}, offered).names, by_op(offered)
    return [
        {
            "op": name,
            "chosen": chosen[name],
            "others": {
                each.name: each.why_not(target)
                for each in op.known(versions[name]).values()
                if each.name != chosen[name]
            },
        }
        for name, op in sorted(OPS.items())
    ]


def kernels(device: str, hooks: HookManager | None, backends: list[dict[str, Any]] | None) -> dict[str, Any]:
    """What computes a model here: whether other packages' kernels are used, the attention backend, what records decode
    steps, and what each recorder says of itself. `native` says what is missing, or why they are not used."""
    import torch

    from bestiary.api import index
    from bestiary.api.registry import ModelRegistry
    from bestiary.engine.graphs import choose_recorder
    from bestiary.engine.loader.vllm_config import choose_device
    from bestiary.nn.attention.choice import BACKENDS
    from bestiary.nn.graphs import Described
    from bestiary.nn.ops.registry import Target

    where = choose_device(device)
    used = "auto" if hooks is None else hooks.kernels
    offered = {} if hooks is None else hooks.all("step_recorders")
    attention = next((each["backend"] for each in backends or [] if each["state"] == "chosen"), None)
    foreign = {} if hooks is None else hooks.all("attention_backends")
    backend = foreign[attention]() if attention in foreign else BACKENDS.get(attention or "")
    recorder, why_not = choose_recorder(offered, Target(where, torch.float32), [backend])
    package = index.kernel_packages().get(where)
    missing = package is not None and package not in ModelRegistry.installation.versions
    return {
        KERNELS: used,
        "native": f"{package} is not installed: pip install {package}" if missing
        else f"left out: {KERNELS} is torch" if used == "torch" else "used where they can run",
        "attention_backend": attention,
        "step_recorder": f"none: {why_not}" if recorder is None else recorder.name,
        "libraries": {name: dict(kind.describe()) for name, kind in offered.items() if isinstance(kind, Described)},
    }  # fmt: skip


def quantization_methods(device: str, hooks: HookManager | None) -> list[dict[str, Any]]:
    """Each method: whether it can start from plain weights, or reads checkpoints, and why it cannot run here."""
    from bestiary.engine.loader.quantization import quantizes_at_load, where_methods_run
    from bestiary.engine.loader.vllm_config import choose_device

    if hooks is None:
        return []
    return [
        {"method": name, "while_loading": quantizes_at_load(hooks, name), "cannot_run": reason}
        for name, reason in where_methods_run(hooks, choose_device(device)).items()
    ]


def attention_backends(device: str, hooks: HookManager | None) -> list[dict[str, Any]]:
    """Each backend: whether it is the one chosen for plain causal attention, and which kinds of layer it refuses."""
    from bestiary.engine.loader.vllm_config import choose_device
    from bestiary.nn.attention.choice import BACKENDS, choose_backend, why_not_layer

    where = choose_device(device)
    kinds = _layer_kinds()
    offered = {} if hooks is None else {name: make() for name, make in hooks.all("attention_backends").items()}
    chosen = choose_backend(None, where, [kinds["plain"]], offered)
    found = []
    for name, backend in {**BACKENDS, **offered}.items():
        why = {kind: reason for kind, spec in kinds.items() if (reason := why_not_layer(backend, where, spec))}
        state = "chosen" if name == chosen.name else "cannot run" if "plain" in why else "can run"
        found.append({"backend": name, "state": state, "cannot": why})
    return found


def _layer_kinds() -> dict[str, AttentionSpec]:
    from dataclasses import replace

    from bestiary.nn.attention.backend import AttentionSpec, AttentionType

    plain = AttentionSpec(num_heads=8, num_kv_heads=8, head_size=64, scale=0.125)
    return {
        "plain": plain,
        "grouped heads": replace(plain, num_kv_heads=2),
        "sliding window": replace(plain, sliding_window=128),
        "soft cap": replace(plain, logits_soft_cap=30.0),
        "alibi": replace(plain, alibi_slopes=(0.5,) * 8),
        "sinks": replace(plain, has_sinks=True),
        "chunks": replace(plain, attention_chunk_size=128),
        "latent": replace(plain, num_kv_heads=1, head_size=576, latent=True),
        "keys before the sequence": replace(plain, sink_len=16),
        "encoder": replace(plain, attn_type=AttentionType.ENCODER_ONLY),
        "cross attention": replace(plain, attn_type=AttentionType.ENCODER_DECODER),
    }


def directories() -> list[dict[str, Any]]:
    """Where things are kept, and whether they can be."""
    from huggingface_hub.constants import HF_HUB_CACHE

    from bestiary.api.choices import config_path
    from bestiary.api.probe_cache import cache_directory

    paths = {"cache": cache_directory(), "hub cache": Path(HF_HUB_CACHE)}
    found = [{"what": name, "path": str(path), "writable": _writable(path)} for name, path in paths.items()]
    path = config_path()
    present = "configuration" if path.exists() else "configuration (none)"
    return [*found, {"what": present, "path": str(path), "writable": True}]


def _writable(path: Path) -> bool:
    """Whether a file could be made there: in the directory, or in the nearest one above that exists."""
    existing = next(each for each in (path, *path.parents) if each.exists())
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
