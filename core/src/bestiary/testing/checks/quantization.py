"""Quantization while loading, for every installed method that needs no quantized checkpoint and rounds weights alone.

The oracle is the model itself, unquantized, its weights replaced by what the quantized layers hold: products with an
identity show it. Both must then agree closely, also where a model makes hard choices that no bound on its logits could
forgive; and no weight may be farther from the checkpoint's than the method rounds.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from bestiary.api.errors import BestiaryError
from bestiary.api.hook_manager import HookManager
from bestiary.nn import FusedMoE, UnquantizedLinearMethod
from bestiary.nn.linear_base import LinearBase
from bestiary.serve.llm import LLM
from bestiary.testing.base import ContractBase
from bestiary.testing.check import check
from bestiary.testing.failures import ContractFailure

BOUNDS = {"int8": 0.5 / 127, "int4": 1 / 15 + 1e-6, "fp8": 16 / 448 + 1e-6}
"""Method → how far a weight may be off, relative to the largest of its layer: half a step, the widest that can be.

int4 has 15 steps for a group's range, which is at most twice the largest; e4m3's last step is from 416 to 448.
"""
ANY_BOUND = 0.1
"""The same for methods the kit does not know."""
AGREEMENT = 1e-3
"""How far logits may be off the oracle's, relative to the largest."""


class QuantizationChecks(ContractBase):
    """`quantization`."""

    @check()
    def test_quantization(self) -> None:
        """Weights quantized while loading round as their method says, and the model computes with them"""
        problems = []
        for method in _methods():
            llm = self.bench.llm(quantization=method)
            bound = self.quantization_bounds.get(method, BOUNDS.get(method, ANY_BOUND))
            problems += [f"{method}: {each}" for each in self._problems(llm, bound)]
        if problems:
            raise ContractFailure(
                "quantized weights do not compute what they should",
                details=problems,
                likely=[
                    "a product made past the layer: call the linear layer, never its weight",
                    "projections that are no layers of bestiary.nn, so that nothing can quantize them",
                    "or the bound does not fit this architecture: state quantization_bounds",
                ],
            )

    def _problems(self, llm: LLM, bound: float) -> Iterator[str]:
        oracle = self.bench.fresh_llm()
        quantized, plain = linear_layers(self.bench.model(llm)), linear_layers(self.bench.model(oracle))
        changed = 0
        for name, layer in quantized.items():
            if isinstance(layer.quant_method, UnquantizedLinearMethod):
                continue
            changed += 1
            held, exact = held_weight(layer), plain[name].weight
            off = float((held - exact).abs().max() / exact.abs().max())
            if not off <= bound:
                yield f"{name}: weights are off by {off:.3g} of the largest; allowed are {bound:.3g}"
            exact.data.copy_(held)
        if not changed:
            yield "no layer was quantized"
        ids = self.bench.prompts()[-1]
        got, want = self.bench.logits(ids, llm), self.bench.logits(ids, oracle)
        off = float((got - want).abs().max() / want.abs().max())
        if not off <= AGREEMENT:
            yield f"logits are {off:.3g} of the largest off those of the same weights, unquantized"


def linear_layers(model: nn.Module) -> dict[str, LinearBase]:
    """Every linear layer by name, those of experts included."""
    found: dict[str, LinearBase] = {}
    for name, module in model.named_modules():
        if isinstance(module, LinearBase):
            found[name] = module
        elif isinstance(module, FusedMoE):
            found |= {f"{name}.{at}": layer for at, layer in enumerate(module.expert_layers)}
    return found


def held_weight(layer: LinearBase) -> torch.Tensor:
    """``[out, in]`` in float32: what a layer multiplies with, whatever form it keeps it in."""
    with torch.inference_mode():
        return layer.quant_method.apply(layer, torch.eye(layer.input_size_per_partition)).t().clone()


def _methods() -> Iterator[str]:
    """Installed methods that run on this machine, can start from plain weights, and leave activations as they are."""
    hooks = HookManager(kernels="torch").load()
    for name in hooks.names("quantization_methods"):
        try:
            made = hooks.get("quantization_methods", name).from_config({})
        except (BestiaryError, KeyError, TypeError, ValueError):
            continue  # it reads quantized checkpoints only
        if made.why_not("cpu") is None and not made.rounds_activations:
            yield name
