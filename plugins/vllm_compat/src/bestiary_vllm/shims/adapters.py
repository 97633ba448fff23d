"""`as_embedding_model` and `as_seq_cls_model`: a pooling model made of one that generates text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from bestiary.nn import DispatchPooler, ParallelLMHead, ReplicatedLinear
from bestiary.nn.weights.fill import count_use

from .stack import StageMissingLayer


def as_embedding_model(model_class: Any) -> type:
    """A class whose answer is a prompt's vector: `model_class` without its head."""

    class Embedding(_headless(model_class)):  # type: ignore[misc]
        is_pooling_model, default_pooling_type = True, "LAST"

        def __init__(self, *, vllm_config: Any, prefix: str = "", **options: Any) -> None:
            super().__init__(vllm_config=vllm_config, prefix=prefix, **options)
            self.pooler = DispatchPooler.for_embedding(vllm_config.model_config.pooler_config)

    return _named(Embedding, model_class, "ForEmbedding")


def as_seq_cls_model(model_class: Any) -> type:
    """A class whose answer is a prompt's scores: a linear layer `score` upon the pooled hidden state."""

    class Classifier(_headless(model_class)):  # type: ignore[misc]
        is_pooling_model, default_pooling_type, supports_cross_encoding = True, "LAST", True

        def __init__(self, *, vllm_config: Any, prefix: str = "", **options: Any) -> None:
            super().__init__(vllm_config=vllm_config, prefix=prefix, **options)
            config = vllm_config.model_config.hf_text_config
            self.score = ReplicatedLinear(
                config.hidden_size, config.num_labels, bias=False, params_dtype=torch.float32, return_bias=False
            )
            self.pooler = DispatchPooler.for_seq_cls(vllm_config.model_config.pooler_config, classifier=self.score)

    return _named(Classifier, model_class, "ForSequenceClassification")


def _headless(model_class: Any) -> Any:
    """A class whose head has no weights, and which also takes checkpoints of the model within it."""

    class Headless(model_class):  # type: ignore[misc]
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            for name, child in list(self.named_children()):
                if isinstance(child, ParallelLMHead):
                    setattr(self, name, StageMissingLayer("output", child))

        def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Any:
            return super().load_weights(self._own(weights))

        def _own(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
            children = dict(self.named_children())
            for name, tensor in weights:
                child = name.partition(".")[0]
                if child == "lm_head" or isinstance(children.get(child), StageMissingLayer):
                    count_use()
                else:
                    yield (name if child in children or "model" not in children else f"model.{name}"), tensor

    return Headless


def _named(made: type, model_class: type, ending: str) -> type:
    stem = model_class.__name__.removesuffix("ForCausalLM").removesuffix("ForConditionalGeneration")
    made.__name__ = made.__qualname__ = stem + ending
    made.__module__ = model_class.__module__
    return made
