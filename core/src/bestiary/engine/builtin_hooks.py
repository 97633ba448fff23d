"""What core itself offers through the hooks. Values are names: nothing is imported by listing them."""

from __future__ import annotations

from bestiary.api.hooks import Offers, hookimpl

_NN = "bestiary.nn"
_LOADER = "bestiary.engine.loader"


@hookimpl
def quantization_methods() -> Offers:
    return {"gguf": f"{_NN}.quant.gguf:GgufConfig", "int8": f"{_NN}.quant.int8:Int8Config"}


@hookimpl
def attention_backends() -> Offers:
    return {
        "torch": f"{_NN}.attention.sdpa:TorchBackend",
        "deterministic": f"{_NN}.attention.deterministic:DeterministicBackend",
        "reference": f"{_NN}.attention.reference:ReferenceBackend",
    }


@hookimpl
def op_implementations() -> Offers:
    return {"linear/by_shape": f"{_NN}.ops.linear:BY_SHAPE", "linear/fixed_tile": f"{_NN}.ops.linear:FIXED_TILE"}


@hookimpl
def weight_formats() -> Offers:
    return {"safetensors": f"{_LOADER}.weights:open_safetensors", "gguf": f"{_LOADER}.weights:open_gguf"}


@hookimpl
def config_parsers() -> Offers:
    return {"attribute_bag": f"{_LOADER}.hf_config:AttributeConfig"}


@hookimpl
def step_observers() -> Offers:
    return {"counter": "bestiary.engine.observers:StepCounter"}
