"""What core itself offers through the hooks. Values are names: nothing is imported by listing them."""

from __future__ import annotations

from bestiary.api.hooks import Offers, hookimpl

_NN = "bestiary.nn"
_LOADER = "bestiary.engine.loader"
_TRITON = (
    "rms_norm", "fused_add_rms_norm", "gemma_rms_norm", "layer_norm", "silu_and_mul", "gelu_and_mul", "gelu",
    "quick_gelu", "relu2", "rotary_angles", "rotary_embedding", "qk_norm_rope", "qk_norm_rope_cache", "write_kv_cache",
    "linear", "topk_routing", "fused_experts", "grouped_experts", "add_lora", "add_lora_embedding", "best_tokens",
    "draw_tokens", "draw_from_part", "linear_gguf", "linear_int8", "linear_int8_int8", "linear_fp8", "linear_fp8_fp8",
    "linear_int4", "linear_uint8", "linear_codebook", "place_rows", "embedding_gguf",
)  # fmt: skip
"""Ops that Triton kernels compute on CUDA."""
_EXACT = (
    "fused_experts", "grouped_experts", "add_lora", "add_lora_embedding", "linear_gguf", "linear_int8", "linear_fp8",
    "linear_fp8_fp8", "linear_int4", "linear_uint8", "linear_codebook",
)  # fmt: skip
"""Those of them that have versions of their own where a row's bits must not depend on other rows."""


@hookimpl
def quantization_methods() -> Offers:
    return {
        "int8": f"{_NN}.quant.int8:Int8Config",
        "int4": f"{_NN}.quant.grouped:Int4Config",
        "fp8": f"{_NN}.quant.fp8:Fp8Config",
        "fp8_dynamic": f"{_NN}.quant.fp8:Fp8DynamicConfig",
        "gguf": f"{_NN}.quant.gguf:GgufConfig",
        "gptq": f"{_NN}.quant.gptq:GptqConfig",
        "awq": f"{_NN}.quant.awq:AwqConfig",
        "compressed-tensors": f"{_NN}.quant.compressed_tensors:CompressedTensorsConfig",
        "bitsandbytes": f"{_NN}.quant.bitsandbytes:BitsAndBytesConfig",
    }


@hookimpl
def attention_backends() -> Offers:
    return {
        "triton": f"{_NN}.attention.triton:TritonBackend",
        "triton_exact": f"{_NN}.attention.triton:TritonExactBackend",
        "torch": f"{_NN}.attention.sdpa:TorchBackend",
        "deterministic": f"{_NN}.attention.deterministic:DeterministicBackend",
        "reference": f"{_NN}.attention.reference:ReferenceBackend",
        "varlen": f"{_NN}.attention.varlen:VarlenBackend",
        "flashinfer": f"{_NN}.attention.flashinfer:FlashInferBackend",
    }


@hookimpl
def op_implementations() -> Offers:
    return {
        "linear/by_shape": f"{_NN}.ops.linear:BY_SHAPE",
        "linear/fixed_tile": f"{_NN}.ops.linear:FIXED_TILE",
        "linear_by_head/fixed_tile": f"{_NN}.ops.latent:BY_HEAD_FIXED_TILE",
        "linear_int8_int8/int_mm": f"{_NN}.ops.quant:INT_MM",
        "add_lora/fixed_tile": f"{_NN}.ops.lora:FIXED_TILE",
        "add_lora_embedding/fixed_tile": f"{_NN}.ops.lora:FIXED_TILE_EMBEDDING",
        "causal_conv1d/by_token": f"{_NN}.ops.conv:CONV_BY_TOKEN",
        "selective_scan/by_token": f"{_NN}.ops.scan:SELECTIVE_BY_TOKEN",
        "ssd_scan/by_token": f"{_NN}.ops.scan:SSD_BY_TOKEN",
        "gated_delta_rule/by_token": f"{_NN}.ops.delta:DELTA_BY_TOKEN",
        "linear/triton_one_row": f"{_NN}.triton.offers:LINEAR_OF_ONE",
        "linear_fp8_fp8/scaled_mm": f"{_NN}.triton.offers:SCALED_MM",
        **{f"{name}/triton": f"{_NN}.triton.offers:{name.upper()}" for name in _TRITON},
        **{f"{name}/triton_exact": f"{_NN}.triton.offers:EXACT_{name.upper()}" for name in _EXACT},
    }


@hookimpl
def weight_formats() -> Offers:
    return {"safetensors": f"{_LOADER}.weights:open_safetensors", "gguf": f"{_LOADER}.weights:open_gguf"}


@hookimpl
def config_parsers() -> Offers:
    return {"attribute_bag": f"{_LOADER}.hf_config:AttributeConfig"}


@hookimpl
def structured_output_backends() -> Offers:
    return {"llguidance": "bestiary.engine.structured.llguidance:LLGuidanceBackend"}


@hookimpl
def step_recorders() -> Offers:
    return {"cuda_graphs": f"{_NN}.cuda.graphs:CudaGraphs"}


@hookimpl
def step_observers() -> Offers:
    return {"counter": "bestiary.engine.observers:StepCounter"}
