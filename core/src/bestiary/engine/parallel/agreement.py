"""What plans depend on beside requests: equal on every rank, or ranks would come out of step."""

from __future__ import annotations

from collections.abc import Mapping

from bestiary.api.config import VllmConfig
from bestiary.api.errors import EngineError


def plan_settings(config: VllmConfig) -> dict[str, str]:
    """Field → value, as text."""
    model, cache, scheduler, parallel = (
        config.model_config, config.cache_config, config.scheduler_config, config.parallel_config
    )  # fmt: skip
    values = {
        "architecture": model.architecture,
        "max_model_len": model.max_model_len,
        "seed": model.seed,
        "runner": model.runner_type,
        "pooler_config": model.pooler_config,
        "dtype": model.dtype,
        "block_size": cache.block_size,
        "kv_cache_dtype": cache.cache_dtype,
        "enable_prefix_caching": cache.enable_prefix_caching,
        "max_num_seqs": scheduler.max_num_seqs,
        "max_num_batched_tokens": scheduler.max_num_batched_tokens,
        "enable_chunked_prefill": scheduler.enable_chunked_prefill,
        "max_queue": scheduler.max_queue,
        "tensor_parallel_size": parallel.tensor_parallel_size,
        "pipeline_parallel_size": parallel.pipeline_parallel_size,
        "data_parallel_size": parallel.data_parallel_size,
        "enable_expert_parallel": parallel.enable_expert_parallel,
        "max_loras": None if config.lora_config is None else config.lora_config.max_loras,
        "max_cpu_loras": None if config.lora_config is None else config.lora_config.max_cpu_loras,
        "enable_eplb": parallel.enable_eplb,
        "eplb_config": parallel.eplb_config,
    }
    return {name: str(value) for name, value in values.items()}


def refuse_other_settings(leader: Mapping[str, str], own: Mapping[str, str], rank: int) -> None:
    """Raises `EngineError` naming every field in which `rank` differs from rank 0."""
    differences = [
        f"{name}: {leader.get(name)} on rank 0, {own.get(name)} here"
        for name in sorted({*leader, *own})
        if leader.get(name) != own.get(name)
    ]
    if differences:
        raise EngineError(
            f"rank {rank} was started with other arguments than rank 0", code="RANKS_DISAGREE",
            details=differences, fix="start every machine with the same arguments, apart from node_rank",
        )  # fmt: skip
