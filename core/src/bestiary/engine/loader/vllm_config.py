"""From arguments and a description to the one `VllmConfig`: every default becomes a value here."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from bestiary.api.config import (
    CacheConfig,
    DeviceConfig,
    EPLBConfig,
    LoadConfig,
    LoRAConfig,
    ModelConfig,
    OpConfig,
    ParallelConfig,
    SchedulerConfig,
    VllmConfig,
)
from bestiary.api.errors import UsageError
from bestiary.api.ggml_types import GgmlType
from bestiary.engine.arguments import EngineArgs
from bestiary.engine.notices import notice
from bestiary.nn.gguf.dequant import FLOATS

from .description import ModelDescription
from .hf_config import text_config

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_LENGTH_FIELDS = ("max_position_embeddings", "n_positions", "seq_length", "max_sequence_length", "model_max_length")
_UNKNOWN_LENGTH = 2048


def make_vllm_config(
    args: EngineArgs,
    description: ModelDescription,
    architecture: str,
    hf_config: Any,
    quant_config: Any = None,
    packing: Collection[str] = (),
) -> VllmConfig:
    """All of it checked. `packing`: the ops that read weights of any dtype beside float32 activations.

    Raises:
        UsageError: arguments do not fit the model or this machine.
    """
    device = choose_device(args.device)
    sequences, tokens = args.step_limits(device)
    dtype, weights_dtype = choose_dtype(args.dtype, description, device, "linear" in packing)
    return VllmConfig(
        model_config=ModelConfig(
            model=args.model,
            architecture=architecture,
            hf_config=hf_config,
            hf_text_config=text_config(hf_config),
            dtype=dtype,
            weights_dtype=weights_dtype,
            max_model_len=_max_model_len(args.max_model_len, description.data),
            seed=args.seed,
            deterministic=args.deterministic,
            revision=args.revision,
            use_mla=_uses_mla(text_config(hf_config)),
        ),
        cache_config=CacheConfig(
            block_size=args.block_size,
            memory_bytes=args.kv_cache_memory_bytes,
            num_blocks=args.num_gpu_blocks_override,
            cache_dtype=choose_cache_dtype(args.kv_cache_dtype, weights_dtype, quant_config, packing),
            enable_prefix_caching=args.enable_prefix_caching,
            sliding_window=_window_of_all_layers(text_config(hf_config)),
        ),
        scheduler_config=SchedulerConfig(
            max_num_seqs=sequences,
            max_num_batched_tokens=tokens,
            enable_chunked_prefill=args.enable_chunked_prefill,
            max_queue=args.max_queue,
            async_scheduling=_async_scheduling(args, device),
        ),
        device_config=DeviceConfig(device=device),
        load_config=LoadConfig(
            load_format=args.load_format,
            allow_nonfinite=args.allow_nonfinite,
            verify=args.verify,
            progress=args.progress,
        ),
        op_config=OpConfig(attention_backend=args.attention_backend, implementations=args.ops),
        quant_config=quant_config,
        lora_config=_lora_config(args),
    )


def _async_scheduling(args: EngineArgs, device: str) -> bool:
    """Where nobody says, on a GPU, also where ranks share each layer; elsewhere a step is over when its launch is.

    Raises:
        UsageError: it was asked for in a pipeline, beside copies of the model, or of ranks on CPUs.
    """
    divided = args.pipeline_parallel_size * args.data_parallel_size > 1
    if device != "cuda":
        divided = divided or args.tensor_parallel_size > 1
    if args.async_scheduling and divided:
        raise UsageError(
            "steps are not planned ahead where ranks divide a model", field="async_scheduling", value=True,
            limit="one rank, or on GPUs tensor_parallel_size alone", fix="leave async_scheduling out",
        )  # fmt: skip
    return device == "cuda" and not divided if args.async_scheduling is None else args.async_scheduling


def _lora_config(args: EngineArgs) -> LoRAConfig | None:
    if not args.enable_lora and not args.lora_modules:
        return None
    rooms = {"max_loras": args.max_loras, "max_lora_rank": args.max_lora_rank, "max_cpu_loras": args.max_cpu_loras}
    return LoRAConfig(**rooms)


def parallel_config(args: EngineArgs) -> ParallelConfig:
    """How many ranks there are. Raises `UsageError` where they cannot be divided as asked."""
    return ParallelConfig(
        tensor_parallel_size=args.tensor_parallel_size,
        pipeline_parallel_size=args.pipeline_parallel_size,
        data_parallel_size=args.data_parallel_size,
        enable_expert_parallel=args.enable_expert_parallel,
        enable_eplb=args.enable_eplb,
        eplb_config=_eplb_config(args.eplb_config),
        pipeline_layers=None if args.pipeline_layers is None else tuple(args.pipeline_layers),
        nnodes=args.nnodes,
        node_rank=args.node_rank,
        master_addr=args.master_addr,
        master_port=args.master_port,
        distributed_executor_backend=args.distributed_executor_backend,
        stall_timeout=args.stall_timeout,
    )


def _eplb_config(given: Mapping[str, int]) -> EPLBConfig:
    known = [each.name for each in fields(EPLBConfig)]
    for name, value in given.items():
        if name not in known:
            raise UsageError(
                "load balancing has no such option", field=f"eplb_config.{name}", value=value,
                limit=f"one of {', '.join(known)}",
            )  # fmt: skip
    return EPLBConfig(**given)


def _window_of_all_layers(config: Any) -> int | None:
    """The window that layers take which are given none of their own; None where layers differ, or none has one."""
    window = getattr(config, "sliding_window", None)
    if not isinstance(window, int) or not window or getattr(config, "use_sliding_window", True) is False:
        return None
    kinds = set(getattr(config, "layer_types", None) or ["sliding_attention"])
    mixed = kinds != {"sliding_attention"} or getattr(config, "sliding_window_pattern", None) not in (None, 1)
    return None if mixed else window


def _uses_mla(config: Any) -> bool:
    """Whether the model has latents to keep, and its files do not say that they are not to be: by `use_mla`, or by
    reading in both directions."""
    rank, rope = getattr(config, "kv_lora_rank", None), getattr(config, "qk_rope_head_dim", None)
    wanted = getattr(config, "use_mla", True) is not False and getattr(config, "is_causal", True) is not False
    return bool(rank and rope) and wanted


def choose_device(wanted: str) -> str:
    """ "auto" takes CUDA where there is a device; asking for one that is not there is an error."""
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted not in ("cpu", "cuda"):
        raise UsageError("there is no such device", field="device", value=wanted, limit="auto, cpu or cuda")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UsageError("no CUDA device can be used here", field="device", value=wanted, fix="device=cpu")
    return wanted


def choose_dtype(
    wanted: str, description: ModelDescription, device: str, reads_any: bool = False
) -> tuple[torch.dtype, torch.dtype | None]:
    """The dtype of weights and activations, and that of matrices where it is another.

    "auto" is the checkpoint's, but float32 where the CPU is slow in it; and where products `reads_any` weights,
    float32 with the checkpoint's weights.
    """
    if wanted != "auto":
        if wanted not in DTYPES:
            raise UsageError("unknown dtype", field="dtype", value=wanted, limit=f"auto, {', '.join(DTYPES)}")
        return DTYPES[wanted], None
    named = description.data.get("dtype") or description.data.get("torch_dtype") or "float32"
    stored = DTYPES.get(str(named).removeprefix("torch."), torch.float32)
    if reads_any and description.source.kind == "gguf":
        stored = _floats_of(description)
    if device != "cpu":
        return (torch.bfloat16 if stored is torch.float32 else stored), None
    if reads_any:
        return torch.float32, None if stored is torch.float32 else stored
    if stored is not torch.float32 and not _cpu_computes(stored):
        notice(f"dtype float32 instead of the checkpoint's {named}: this CPU computes {named} slowly")
        return torch.float32, None
    return stored, None


def _floats_of(description: ModelDescription) -> torch.dtype:
    """The dtype of a GGUF file's matrices that are in no blocks, if they have one; float32 otherwise."""
    kinds = description.quantization_config("gguf").get("tensors", {}).values()
    found = {dtype for kind in kinds if (dtype := FLOATS.get(GgmlType[kind])) is not None}
    dtype = found.pop() if len(found) == 1 else torch.float32
    return dtype if dtype in DTYPES.values() else torch.float32


def choose_cache_dtype(
    wanted: str, weights_dtype: torch.dtype | None, quant_config: Any, packing: Collection[str]
) -> str:
    """What keys and values are kept in. "auto" stays that, and is the model's, unless float32 activations stand for
    something narrower: then it is the matrices' dtype, or float16 where these are quantized."""
    if wanted != "auto" or not packing:
        return wanted
    if weights_dtype is not None:
        return str(weights_dtype).removeprefix("torch.")
    return "auto" if quant_config is None else "float16"


def _cpu_computes(dtype: torch.dtype) -> bool:
    """Whether the CPU has instructions for products in `dtype`."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text() if cpuinfo.exists() else ""
    wanted = {torch.bfloat16: ("avx512_bf16", "amx_bf16"), torch.float16: ("avx512_fp16", "amx_fp16")}[dtype]
    return any(flag in flags for flag in wanted)


def _max_model_len(wanted: int | None, data: Mapping[str, Any]) -> int:
    length = _checked_length(wanted, data)
    rope = data.get("rope_parameters") or data.get("rope_scaling") or {}
    original = rope.get("original_max_position_embeddings", data.get("original_max_position_embeddings"))
    if (
        rope.get("rope_type", rope.get("type")) in ("longrope", "su")
        and isinstance(original, int)
        and length > original
    ):
        notice(
            f"LongRoPE: its long factors hold for every position, since max_model_len={length} is above {original}; "
            f"with max_model_len={original} its short ones do"
        )
    return length


def _checked_length(wanted: int | None, data: Mapping[str, Any]) -> int:
    if wanted is not None and wanted < 1:
        raise UsageError("max_model_len is too small", field="max_model_len", value=wanted, limit="at least 1")
    given = (data.get(name) for name in _LENGTH_FIELDS)
    trained = next((each for each in given if isinstance(each, int) and not isinstance(each, bool) and each > 0), None)
    if trained is None:
        if wanted is None:
            notice(f"the model does not say how long its context is: max_model_len={_UNKNOWN_LENGTH}")
        return wanted or _UNKNOWN_LENGTH
    limit = int(trained * _stretch(data))
    if wanted is not None and wanted > limit:
        raise UsageError(
            f"this model was made for at most {limit} tokens",
            field="max_model_len",
            value=wanted,
            limit=f"at most {limit}",
            fix='a larger limit needs rotary scaling: hf_overrides={"rope_parameters": {…}}',
        )
    return wanted or int(trained)


def _stretch(data: Mapping[str, Any]) -> float:
    """How far rotary scaling reaches beyond `max_position_embeddings`, where that counts the unscaled positions."""
    rope = data.get("rope_parameters") or data.get("rope_scaling") or {}
    if not isinstance(rope, Mapping) or "original_max_position_embeddings" in rope:
        return 1.0
    factor = rope.get("factor", 1.0)
    stretches = rope.get("rope_type", rope.get("type")) in ("linear", "dynamic", "yarn")
    return float(factor) if stretches and isinstance(factor, int | float) else 1.0
