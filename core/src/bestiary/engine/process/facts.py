"""`ModelInfo` of a running engine."""

from __future__ import annotations

from bestiary.api.errors import EngineError
from bestiary.api.lora import LoRAInfo
from bestiary.api.protocols import MARKERS
from bestiary.engine.build import EngineBuilder
from bestiary.engine.engine import LLMEngine
from bestiary.engine.executor import live
from bestiary.engine.model_layers import attention_layers
from bestiary.engine.runner import ModelRunner

from .messages import ModelInfo


def model_info(engine: LLMEngine, builder: EngineBuilder) -> ModelInfo:
    """What somebody in another process wants to know of `engine`, which `builder` made."""
    config, limits, usage = engine.vllm_config, engine.scheduler.limits, engine.stats().kv_cache
    runner: ModelRunner = live(engine.executor.runner)  # type: ignore[attr-defined]
    if builder.found is None:
        raise EngineError("this engine was not built yet")
    found, package = builder.found, builder.found.entry.distribution
    kept = list(runner.model.parameters())
    adapters: list[LoRAInfo] = [] if config.lora_config is None else engine.list_loras()
    backends = {type(layer.backend).__name__ for layer in attention_layers(runner.model).values()}
    return ModelInfo(
        name=builder.args.model,
        architecture=config.model_config.architecture,
        model_class=f"{found.model_class.__module__}:{found.model_class.__qualname__}",
        distribution="" if package is None else package.name,
        version="" if package is None else package.version,
        dtype=str(config.model_config.dtype).removeprefix("torch."),
        quantization=None if config.quant_config is None else config.quant_config.name,
        device=config.device_config.device,
        parameters=builder.parameters,
        weight_bytes=sum(each.numel() * each.element_size() for each in kept),
        max_model_len=limits.max_model_len,
        vocab_size=engine.vocab_size,
        eos_token_ids=tuple(sorted(engine.eos_token_ids)),
        cache_tokens=limits.cache_tokens,
        max_prompt=limits.max_prompt,
        max_num_seqs=config.scheduler_config.max_num_seqs * config.parallel_config.data_parallel_size,
        num_kv_blocks=usage.num_blocks,
        block_size=config.cache_config.block_size,
        attention_backend=" and ".join(sorted(backends)) or "none",
        ops=dict(engine.ops),
        capabilities=tuple(
            protocol.__name__ for name, protocol in MARKERS.items() if getattr(found.model_class, name, False) is True
        ),
        lora=config.lora_config is not None,
        adapters=tuple(adapters),
        pooling=engine.checks.pooling,
    )
