"""`EngineArgs`: what a user may ask for, with vLLM's names, in one frozen place."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from bestiary.api.errors import UsageError

_LATER = {
    "tensor_parallel_size": 1,
    "pipeline_parallel_size": 1,
    "data_parallel_size": 1,
    "enable_expert_parallel": False,
    "enable_lora": False,
    "trust_remote_code": False,
}
"""vLLM's arguments this version knows but has one value for; any other is an error rather than ignored."""


@dataclass(frozen=True, kw_only=True)
class EngineArgs:
    """Arguments of `LLM` and of the command line.

    Attributes:
        model: a directory, a `.gguf` file, a hub id (``owner/name``, ``owner/name:file.gguf``) or a short name.
        dtype: "auto" (the checkpoint's; float32 on a CPU without fast bfloat16, and says so), "float32", "bfloat16",
            "float16".
        max_model_len: prompt and answer together; None: what the model was trained for.
        max_num_seqs, max_num_batched_tokens, enable_chunked_prefill, max_queue: limits of one step, and of the queue.
        block_size: KV-cache block, in tokens. num_gpu_blocks_override: exact number of blocks, on any device.
        kv_cache_memory_bytes: memory for them; None: half of what is free (4 GiB of it on a CPU), at most what
            `max_num_seqs` sequences can use. kv_cache_dtype: "auto" is the model's.
        hf_config_path: another directory's config.json. hf_overrides: fields to change in it.
        load_format: "auto", "safetensors", "gguf" or "dummy". allow_nonfinite: accept NaN and Inf in weights.
        verify: compare weight files with their published SHA-256 before they are read.
        plugin: architecture → distribution, where several provide one.
        quantization: quantize while loading, by a method's name. attention_backend, ops: implementations by name,
            instead of the best one.
    """

    model: str
    tokenizer: str | None = None
    skip_tokenizer_init: bool = False
    revision: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    seed: int = 0
    deterministic: bool = False
    max_model_len: int | None = None
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048
    enable_chunked_prefill: bool = True
    enable_prefix_caching: bool = True
    max_queue: int | None = None
    block_size: int = 16
    num_gpu_blocks_override: int | None = None
    kv_cache_memory_bytes: int | None = None
    kv_cache_dtype: str = "auto"
    hf_config_path: str | None = None
    hf_overrides: Mapping[str, Any] = field(default_factory=dict)
    load_format: str = "auto"
    allow_nonfinite: bool = False
    verify: bool = False
    quantization: str | None = None
    attention_backend: str | None = None
    ops: Mapping[str, str] = field(default_factory=dict)
    plugin: Mapping[str, str] = field(default_factory=dict)
    progress: bool = True

    @classmethod
    def make(cls, model: str, options: Mapping[str, Any]) -> EngineArgs:
        """Build from keyword arguments; an unknown or not yet possible one is a `UsageError` that says so."""
        known = {each.name for each in fields(cls)}
        given = dict(options)
        for name, value in options.items():
            if name in _LATER:
                _refuse_unless(name, value, _LATER[name])
                del given[name]
            elif name not in known:
                near = difflib.get_close_matches(name, known | set(_LATER), n=1)
                hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(sorted(known))}"
                raise UsageError(f"unknown argument {name!r}", field=name, limit=hint)
        return cls(model=model, **given)


def _refuse_unless(name: str, value: object, only: object) -> None:
    if name == "trust_remote_code":
        if value:
            raise UsageError(
                "this project runs no code from model directories",
                field=name,
                value=value,
                fix="install a package that provides the architecture: bestiary models",
            )
    elif value != only:
        raise UsageError(f"{name}={value!r} is not possible in this version", field=name, value=value, limit=only)
