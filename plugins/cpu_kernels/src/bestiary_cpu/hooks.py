"""What this package offers an engine. Values are names: nothing is imported by listing them."""

from __future__ import annotations

from bestiary.api.hooks import Offers, hookimpl

_VERSIONS = "bestiary_cpu.versions"


@hookimpl
def op_implementations() -> Offers:
    names = (
        "linear", "embedding", "linear_gguf", "embedding_gguf", "linear_int8", "linear_int4", "linear_uint8",
        "rms_norm", "fused_add_rms_norm", "gemma_rms_norm", "layer_norm", "silu_and_mul", "gelu_and_mul", "gelu",
        "quick_gelu", "relu2", "rotary_angles", "rotary_embedding", "topk_routing", "fused_experts", "add_lora",
        "add_lora_embedding", "best_tokens",
    )  # fmt: skip
    offers = {f"{name}/native": f"{_VERSIONS}:{name.upper()}" for name in names}
    return {**offers, "linear/native_deterministic": f"{_VERSIONS}:LINEAR_DETERMINISTIC"}


@hookimpl
def attention_backends() -> Offers:
    return {"native": "bestiary_cpu.attention:NativeBackend"}


@hookimpl
def step_recorders() -> Offers:
    return {"native": "bestiary_cpu.steps:NativeStepRecorder"}
