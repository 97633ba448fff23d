"""What the class says of itself, compared with the layers it makes; and embeddings in the place of ids."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from bestiary.api.conformance import claims
from bestiary.api.registry import ModelRegistry
from bestiary.engine.runner import ModelRunner
from bestiary.nn import ParallelLMHead, VocabParallelEmbedding
from bestiary.nn.linear import ColumnParallelLinear
from bestiary.testing.base import BASE, ContractBase
from bestiary.testing.check import check
from bestiary.testing.compare import ATOL, require_close
from bestiary.testing.failures import ContractFailure

_ROLES: Mapping[str, type[nn.Module]] = {
    "input_embeddings": VocabParallelEmbedding,
    "output_embeddings": ParallelLMHead,
}
"""What `embedding_modules` may call a layer → what kind of layer that is."""


class ClaimsChecks(ContractBase):
    """`named_layers`, `embeddings`."""

    @classmethod
    def why_not(cls, name: str) -> str | None:
        if name == "embeddings":
            model_class: Any = ModelRegistry.resolve([cls.architecture])
            if "inputs_embeds" not in inspect.signature(model_class.forward).parameters:
                return "its forward takes no inputs_embeds"
        return super().why_not(name)

    @check()
    def test_named_layers(self) -> None:
        """Fused layers, embeddings and experts are where and what the class says, in some variant at least."""
        models = [self.bench.build(variant)[0] for variant in (BASE, *self.variants)]
        first = models[0]
        problems = list(_wrong_fusions(models, getattr(first, "packed_modules_mapping", {})))
        problems += _wrong_embeddings(models, getattr(first, "embedding_modules", {}))
        chooses = any(getattr(each, "is_moe_layer", False) for model in models for each in model.modules())
        if chooses != claims(type(first), "is_mixture_of_experts"):
            having = "has layers of experts" if chooses else "has no layer of experts"
            problems.append(f"MixtureOfExperts: the model {having}, the class says otherwise")
        if problems:
            raise ContractFailure(
                "the class does not describe its layers",
                details=problems,
                likely=[
                    "packed_modules_mapping or embedding_modules names what was renamed or removed",
                    "a layer that no variant has: add a variant",
                ],
            )

    @check()
    def test_embeddings(self) -> None:
        """Embeddings given in the place of ids (`inputs_embeds`) give the same logits."""
        llm = self.bench.llm()
        for ids in self.bench.prompts():
            want = self.bench.logits(ids, llm)
            with _fed_with_embeddings(self.bench.runner(llm)):
                got = self.bench.logits(ids, llm)
            require_close(
                got, want, ATOL, "embeddings in the place of ids give other logits",
                where=f"prompt of {len(ids)} tokens",
                likely=["embed_input_ids returns something else than forward makes of ids", "inputs_embeds is unused"],
            )  # fmt: skip


def _layers(models: Sequence[nn.Module], name: str) -> list[nn.Module]:
    """The layers of this name, wherever they are."""
    return [layer for model in models for path, layer in model.named_modules() if path.rpartition(".")[2] == name]


def _wrong_fusions(models: Sequence[nn.Module], fusions: Mapping[str, Sequence[str]]) -> Iterator[str]:
    for fused, parts in fusions.items():
        found = _layers(models, fused)
        if not found:
            yield f"packed_modules_mapping: no layer is called {fused}"
        for layer in found[:1]:
            if not isinstance(layer, ColumnParallelLinear) or len(layer.output_sizes) != len(parts):
                yield f"packed_modules_mapping: {fused} is not {len(parts)} projections in one"
        yield from (f"packed_modules_mapping: {name} is a layer itself" for name in parts if _layers(models, name))


def _wrong_embeddings(models: Sequence[nn.Module], roles: Mapping[str, str]) -> Iterator[str]:
    for name, role in roles.items():
        found = _layers(models, name)
        kind = _ROLES.get(role)
        if kind is None:
            yield f"embedding_modules: {name} is {role!r}; it may be {' or '.join(_ROLES)}"
        elif not found or not all(isinstance(layer, kind) for layer in found):
            yield f"embedding_modules: {name} is no {kind.__name__}"
        elif kind is VocabParallelEmbedding and any(isinstance(layer, ParallelLMHead) for layer in found):
            yield f"embedding_modules: {name} is the head, not the embedding"
    for role, kind in _ROLES.items() if roles else ():
        if role not in roles.values():
            yield f"embedding_modules: names no {role}, a {kind.__name__}"


@contextmanager
def _fed_with_embeddings(runner: ModelRunner) -> Iterator[None]:
    """Meanwhile the runner's model is given what it makes of ids itself, and no ids."""
    model = runner.model
    runner.stage.model = _Embedded(model)
    try:
        yield
    finally:
        runner.stage.model = model


class _Embedded:
    """The model as the runner calls it, by `inputs_embeds`."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.compute_logits = model.compute_logits

    def __call__(self, input_ids: torch.Tensor, positions: torch.Tensor) -> Any:
        embedded = self.model.embed_input_ids(input_ids)
        return self.model(input_ids=None, positions=positions, inputs_embeds=embedded)
