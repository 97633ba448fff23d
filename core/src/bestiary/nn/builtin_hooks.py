"""What ring 1 itself offers through the hooks. Values are names: nothing is imported by listing them."""

from __future__ import annotations

from bestiary.api.hooks import Offers, hookimpl


@hookimpl
def quantization_methods() -> Offers:
    return {"int8": "bestiary.nn.quant.int8:Int8Config"}


@hookimpl
def attention_backends() -> Offers:
    return {
        "torch": "bestiary.nn.attention.sdpa:TorchBackend",
        "deterministic": "bestiary.nn.attention.deterministic:DeterministicBackend",
        "reference": "bestiary.nn.attention.reference:ReferenceBackend",
    }


@hookimpl
def op_implementations() -> Offers:
    return {"linear/fixed_tile": "bestiary.nn.ops.linear:FIXED_TILE"}
