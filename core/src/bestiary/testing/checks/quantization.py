"""Quantization while loading, for every installed method that needs no quantized checkpoint."""

from __future__ import annotations

from collections.abc import Iterator

from bestiary.api.errors import BestiaryError
from bestiary.api.hook_manager import HookManager
from bestiary.testing.base import ContractBase
from bestiary.testing.check import check
from bestiary.testing.compare import distance
from bestiary.testing.failures import ContractFailure

BOUNDS = {"int8": 0.12}
"""Method → how far logits may be off, relative to their norm."""
ANY_BOUND = 0.2
"""The same for methods the kit does not know."""


class QuantizationChecks(ContractBase):
    """`quantization`."""

    @check()
    def test_quantization(self) -> None:
        """Weights quantized while loading keep the logits within each method's bound."""
        ids = self.bench.prompts()[-1]
        exact, problems = self.bench.logits(ids), []
        for method in _methods():
            bound = self.quantization_bounds.get(method, BOUNDS.get(method, ANY_BOUND))
            got = self.bench.logits(ids, self.bench.llm(quantization=method))
            off = distance(got, exact)
            if off == 0.0:
                problems.append(f"{method}: no number changed, so no layer was quantized")
            elif not off <= bound:
                problems.append(f"{method}: {off:.3g} of the logits' norm; allowed are {bound:.3g}")
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


def _methods() -> Iterator[str]:
    """Installed methods that run on this machine and can start from plain weights."""
    hooks = HookManager().load()
    for name in hooks.names("quantization_methods"):
        try:
            made = hooks.get("quantization_methods", name).from_config({})
        except (BestiaryError, KeyError, TypeError, ValueError):
            continue  # it reads quantized checkpoints only
        if made.why_not("cpu") is None:
            yield name
