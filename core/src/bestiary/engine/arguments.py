"""`EngineArgs`: what a user may ask for, with vLLM's names, in one frozen place."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from bestiary.api.errors import UsageError
from bestiary.api.pooling import POOLING_TYPES

_KNOWN: dict[str, tuple[object, ...]] = {
    "trust_remote_code": (False,),
    "disable_log_stats": (True, False),
    "swap_space": (0,),
    "cpu_offload_gb": (0,),
    "tokenizer_mode": ("auto",),
    "generation_config": ("vllm",),
}
"""vLLM's arguments that this version has no choice for → the values that ask for what happens anyway; others are
errors."""
_INSTEAD = {
    "gpu_memory_utilization": "kv_cache_memory_bytes says how much memory the KV cache takes",
}
"""vLLM's arguments that have another name or form here."""


@dataclass(frozen=True, kw_only=True)
class EngineArgs:
    """Arguments of `LLM` and of the command line.

    Attributes:
        model: a directory, a `.gguf` file, a hub id (``owner/name``, ``owner/name:file.gguf``) or a short name.
        download_dir: where models of the hub are kept; None is the hub's own cache.
        dtype: "auto" (the checkpoint's; float32 on a CPU without fast bfloat16, and says so), "float32", "bfloat16",
            "float16".
        max_model_len: prompt and answer together; None: what the model was trained for.
        max_num_seqs, max_num_batched_tokens, enable_chunked_prefill, max_queue: limits of one step (None: 64 sequences
            and 2048 tokens, on a GPU 256 and 8192), and of the queue.
            async_scheduling: plan a step before the tokens of the one before it are known; None: on a GPU.
        block_size: KV-cache block, in tokens. num_gpu_blocks_override: exact number of blocks, on any device.
        kv_cache_memory_bytes: memory for them; None: half of what is free (4 GiB of it on a CPU), at most what
            `max_num_seqs` sequences can use. kv_cache_dtype: "auto" is the model's, or a
            checkpoint's narrower one that native kernels keep (float16 where it is quantized);
            "float32", "bfloat16", "float16", "int8", "fp8" (the same as "fp8_e4m3") or "fp8_e5m2".
        hf_config_path: another directory's config.json. hf_overrides: fields to change in it, or a function from the
            fields to the fields.
        load_format: "auto", "safetensors", "gguf" or "dummy". allow_nonfinite: accept NaN and Inf in weights.
        verify: compare weight files with their published SHA-256 before they are read.
        enable_lora: make room for adapters; `lora_modules` (name → directory), which are added at the start, imply it.
        max_loras, max_lora_rank, max_cpu_loras: see `LoRAConfig`.
        plugin: architecture → distribution, where several provide one.
        runner: "generate" text, or "pooling": a vector of each prompt; "auto" is what the model's class is made for.
            pooling_type: of which hidden states: "LAST", "CLS" (the first) or "MEAN"; None: as the model's
            files say, else its class, else "LAST".
        quantization: quantize while loading, by a method's name. attention_backend, ops: implementations by name,
            instead of the best one. kernels: "auto", the fastest of all installed packages', or "torch", core's own.
            enforce_eager: record no decode steps. capture_sizes: "lazily" records a step when its size first comes,
            "at_start" all sizes before the first request, where they are few (on CUDA).
        structured_outputs_backend: what enforces the form of answers, by name.
        tensor_parallel_size, pipeline_parallel_size, data_parallel_size: ranks that share each tensor; stages that
            share the layers (`pipeline_layers`: how many each, None evenly); copies of the model. Their product is
            the number of processes.
        enable_expert_parallel: tensor-parallel ranks hold whole experts instead of slices of all. enable_eplb,
            eplb_config: move and copy experts after measured load (`num_redundant_experts`, `window_size`,
            `step_interval`).
        nnodes, node_rank, master_addr, master_port: several machines, which one this is, and where the first is met.
        distributed_executor_backend: "mp" starts the processes, "external_launcher" expects torchrun to have done so,
            "ray" has Ray place them in its cluster.
        stall_timeout: seconds that a rank may wait for another in the middle of a step.
    """

    model: str
    tokenizer: str | None = None
    skip_tokenizer_init: bool = False
    revision: str | None = None
    download_dir: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    seed: int = 0
    deterministic: bool = False
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    enable_chunked_prefill: bool = True
    enable_prefix_caching: bool = True
    max_queue: int | None = None
    async_scheduling: bool | None = None
    block_size: int = 16
    num_gpu_blocks_override: int | None = None
    kv_cache_memory_bytes: int | None = None
    kv_cache_dtype: str = "auto"
    hf_config_path: str | None = None
    hf_overrides: Mapping[str, Any] | Callable[[dict[str, Any]], dict[str, Any]] = field(default_factory=dict)
    load_format: str = "auto"
    allow_nonfinite: bool = False
    verify: bool = False
    quantization: str | None = None
    attention_backend: str | None = None
    kernels: str | None = None
    enforce_eager: bool = False
    capture_sizes: str = "lazily"
    ops: Mapping[str, str] = field(default_factory=dict)
    structured_outputs_backend: str = "llguidance"
    enable_lora: bool = False
    lora_modules: Mapping[str, str] = field(default_factory=dict)
    max_loras: int = 4
    max_lora_rank: int = 64
    max_cpu_loras: int = 64
    plugin: Mapping[str, str] = field(default_factory=dict)
    runner: str = "auto"
    pooling_type: str | None = None
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    data_parallel_size: int = 1
    enable_expert_parallel: bool = False
    pipeline_layers: Sequence[int] | None = None
    enable_eplb: bool = False
    eplb_config: Mapping[str, int] = field(default_factory=dict)
    nnodes: int = 1
    node_rank: int = 0
    master_addr: str = "127.0.0.1"
    master_port: int = 29500
    distributed_executor_backend: str = "mp"
    stall_timeout: float = 120.0
    progress: bool = True

    def step_limits(self, device: str) -> tuple[int, int]:
        """The most sequences and tokens of a step on a device: where nobody says, what about fills it."""
        sequences, tokens = (256, 8192) if device == "cuda" else (64, 2048)
        return (
            sequences if self.max_num_seqs is None else self.max_num_seqs,
            tokens if self.max_num_batched_tokens is None else self.max_num_batched_tokens,
        )

    @classmethod
    def make(cls, model: str, options: Mapping[str, Any]) -> EngineArgs:
        """Build from keyword arguments; an unknown or not yet possible one is a `UsageError` that says so."""
        known = {each.name for each in fields(cls)}
        given = dict(options)
        for name, value in options.items():
            if name in _KNOWN:
                _refuse_unless(name, value, _KNOWN[name])
                del given[name]
            elif name not in known:
                near = difflib.get_close_matches(name, known | set(_KNOWN), n=1)
                hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(sorted(known))}"
                raise UsageError(f"unknown argument {name!r}", field=name, limit=_INSTEAD.get(name, hint))
        if not isinstance(given.get("dtype", ""), str):
            given["dtype"] = str(given["dtype"]).removeprefix("torch.")  # torch.float32 as well as "float32"
        _check_types(cls, given)
        return cls(model=model, **given)


def _check_types(cls: type, given: Mapping[str, Any]) -> None:
    """Each argument must be of the kind its field says; a bool is no integer, and nothing is converted."""
    hints = typing.get_type_hints(cls)
    for name, value in given.items():
        kinds = typing.get_args(hints[name]) if isinstance(hints[name], types.UnionType) else (hints[name],)
        plain = tuple(typing.get_origin(kind) or kind for kind in kinds)
        if float in plain and isinstance(value, int):
            plain = (*plain, int)
        if not isinstance(value, plain) or (isinstance(value, bool) and bool not in plain):
            shown = " or ".join("None" if kind is type(None) else kind.__name__ for kind in plain)
            raise UsageError(f"{name} is of the wrong kind", field=name, value=value, limit=shown)
        choices = _CHOICES.get(name)
        if choices is not None and value is not None and value not in choices:
            raise UsageError(f"there is no such {name}", field=name, value=value, limit=" or ".join(choices))
        low = _AT_LEAST.get(name)
        if low is not None and value is not None and value < low:
            raise UsageError(f"{name} is too small", field=name, value=value, limit=f"at least {low}")


_CHOICES: Mapping[str, tuple[str, ...]] = {
    "runner": ("auto", "generate", "pooling"),
    "pooling_type": POOLING_TYPES,
    "kernels": ("auto", "torch"),
    "capture_sizes": ("lazily", "at_start"),
}
_AT_LEAST: Mapping[str, float] = {
    "max_model_len": 1,
    "max_queue": 0,
    "num_gpu_blocks_override": 1,
    "kv_cache_memory_bytes": 1,
}


def _refuse_unless(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if name == "trust_remote_code":
        if value:
            raise UsageError(
                "this project runs no code from model directories",
                field=name,
                value=value,
                fix="install a package that provides the architecture: bestiary models",
            )
    elif value not in allowed:
        shown = " or ".join(map(repr, allowed))
        raise UsageError(f"{name}={value!r} is not possible in this version", field=name, value=value, limit=shown)
