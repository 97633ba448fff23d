"""What the engine itself offers through the hooks. Values are names: nothing is imported by listing them."""

from __future__ import annotations

from bestiary.api.hooks import Offers, hookimpl

_WEIGHTS = "bestiary.engine.loader.weights"


@hookimpl
def weight_formats() -> Offers:
    return {"safetensors": f"{_WEIGHTS}:open_safetensors", "gguf": f"{_WEIGHTS}:open_gguf"}


@hookimpl
def config_parsers() -> Offers:
    return {"attribute_bag": "bestiary.engine.loader.hf_config:AttributeConfig"}


@hookimpl
def step_observers() -> Offers:
    return {"counter": "bestiary.engine.observers:StepCounter"}
