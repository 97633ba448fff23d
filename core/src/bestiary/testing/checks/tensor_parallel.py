"""Tensor and expert parallelism: the model divided among ranks equals one process.

The ranks are threads of this process, their collectives are real. What a mistake looks like depends on where it is: a
slice taken for the whole gives shapes that do not fit, a sum left out gives other logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from bestiary.api.conformance import claims
from bestiary.api.errors import BestiaryError, UsageError
from bestiary.api.registry import ModelRegistry
from bestiary.nn import FusedMoE
from bestiary.testing.base import ContractBase
from bestiary.testing.check import NOT_APPLICABLE, check
from bestiary.testing.compare import ATOL, require_close
from bestiary.testing.failures import ContractFailure, authors_line
from bestiary.testing.ranks import Ranks

LAYOUTS: Mapping[str, Mapping[str, Any]] = {
    "TP 2": {"tensor_parallel_size": 2},
    "TP 4": {"tensor_parallel_size": 4},
    "TP 2, PP 2": {"tensor_parallel_size": 2, "pipeline_parallel_size": 2},
    "EP 2": {"tensor_parallel_size": 2, "enable_expert_parallel": True},
}
"""Name of a layout → the arguments that ask for it."""
SPARE = 2
"""Experts that are held twice under expert parallelism, if that makes a number that can be divided; else one more."""
_LIKELY = (
    "heads counted without dividing: QKVParallelLinear's num_heads and num_kv_heads are this rank's",
    "ColumnParallelLinear where RowParallelLinear is meant, or the other way round: what the first gives is a slice",
    "RowParallelLinear(reduce_results=False), or a product past the layer, whose sum over ranks nobody makes",
    "something added on every rank before the sum, and so several times",
    "a parameter of one number a head, of which a rank takes all instead of its heads'",
)


class TensorParallelChecks(ContractBase):
    """`tensor_parallel`."""

    @classmethod
    def parameters(cls) -> dict[str, Sequence[str]]:
        return super().parameters() | {"layout": list(LAYOUTS)}

    @check()
    def test_tensor_parallel(self, layout: str) -> None:
        """Ranks that share every tensor (TP), the layers (PP) or the experts (EP) equal one process."""
        options = dict(LAYOUTS[layout])
        if (reason := self._why_no(options)) is not None:
            pytest.skip(NOT_APPLICABLE + reason)
        if "enable_expert_parallel" in options:
            options["eplb_config"] = {"num_redundant_experts": self._spare(options["tensor_parallel_size"])}
        ids = self.bench.prompts()[2]
        try:
            with Ranks(self.bench.checkpoint(), **options) as ranks:
                got = ranks.prompt_logits(ids, (7, len(ids) - 1))
        except UsageError as error:
            pytest.skip(f"{NOT_APPLICABLE}{error.message}")
        except (BestiaryError, RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
            raise ContractFailure(
                f"the model cannot be computed by ranks ({layout})",
                where=authors_line(error),
                got=f"{type(error).__name__}: {str(error).splitlines()[0]}",
                details=getattr(error, "__notes__", ()),
                likely=_LIKELY,
            ) from error
        require_close(
            got, self.bench.logits(ids), ATOL, f"ranks do not equal one process ({layout})",
            where=f"prompt of {len(ids)} tokens in three pieces", likely=_LIKELY,
        )  # fmt: skip

    def _why_no(self, options: Mapping[str, Any]) -> str | None:
        model_class = ModelRegistry.resolve([self.architecture])
        if "pipeline_parallel_size" in options and not claims(model_class, "supports_pp"):
            return "the class does not claim SupportsPP"
        if "enable_expert_parallel" in options and not claims(model_class, "is_mixture_of_experts"):
            return "the class does not claim MixtureOfExperts"
        return None

    def _spare(self, ranks: int) -> int:
        modules = self.bench.model(self.bench.llm()).modules()
        experts = next((module.num_experts for module in modules if isinstance(module, FusedMoE)), 0)
        return SPARE + (-(experts + SPARE)) % ranks
