"""`Pooler`: what stands at a pooling model's end, in place of a language-model head.

class LlamaForSequenceClassification(nn.Module, VllmModelForPooling):
    def __init__(self, *, vllm_config, prefix=""):
        ...
        self.score = ReplicatedLinear(config.hidden_size, config.num_labels, bias=False)
        self.pooler = DispatchPooler.for_seq_cls(vllm_config.model_config.pooler_config, classifier=self.score)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import nn

from bestiary.api.errors import ConfigError
from bestiary.api.pooling import PoolerConfig, PoolingParams, PoolingTask

from .heads import ClassifierHead, EmbeddingHead
from .metadata import PoolingMetadata
from .methods import METHODS, PoolingMethod

Head: TypeAlias = Callable[[list[torch.Tensor], list[PoolingParams]], list[torch.Tensor]]


class Pooler(nn.Module):
    """Makes vectors of hidden states. Every pipeline stage has one; the last one's is called.

    Attributes:
        reads_all: whether it needs the hidden states of all tokens. If so, no prompt takes its beginning from the
            prefix cache, where there are keys and values alone.
        embedding_size: how many numbers an embedding has; None: as many as a hidden state.
    """

    reads_all: bool = True
    embedding_size: int | None = None

    def get_supported_tasks(self) -> tuple[PoolingTask, ...]:
        """What it can be asked for; the first is what it does when nothing is said."""
        return ("embed",)

    def forward(self, hidden_states: torch.Tensor, pooling_metadata: PoolingMetadata) -> list[torch.Tensor]:
        """``[tokens, hidden]`` → for each of `pooling_metadata.due`, in order, a vector of floating-point numbers.

        Prompts come in parts: what is to be kept of one until the next goes into its item's `partial`.
        """
        raise NotImplementedError


class SequencePooler(Pooler):
    """A method that makes one hidden state of a prompt's, and a head that makes a vector of that."""

    def __init__(self, task: PoolingTask, pooling: PoolingMethod, head: Head) -> None:
        super().__init__()
        self.task = task
        self.pooling = pooling
        self.head = head
        self.reads_all = pooling.reads_all
        self.embedding_size = getattr(head, "embedding_size", None)

    def get_supported_tasks(self) -> tuple[PoolingTask, ...]:
        return (self.task,)

    def forward(self, hidden_states: torch.Tensor, pooling_metadata: PoolingMetadata) -> list[torch.Tensor]:
        pooled = self.pooling(hidden_states, pooling_metadata)
        return self.head(pooled, [item.params for item in pooling_metadata.due]) if pooled else []


class DispatchPooler(Pooler):
    """Another pooler for each task."""

    def __init__(self, poolers_by_task: Mapping[PoolingTask, Pooler]) -> None:
        super().__init__()
        if not poolers_by_task:
            raise ConfigError("a pooler without tasks", field="poolers_by_task", limit="at least one task")
        self.poolers = nn.ModuleDict({str(task): pooler for task, pooler in poolers_by_task.items()})
        self.tasks = tuple(poolers_by_task)
        self.reads_all = any(each.reads_all for each in poolers_by_task.values())
        embedder = poolers_by_task.get("embed")
        self.embedding_size = None if embedder is None else embedder.embedding_size

    @classmethod
    def for_embedding(cls, pooler_config: PoolerConfig) -> DispatchPooler:
        """Hidden states themselves, pooled."""
        return cls({"embed": pooler_for_embed(pooler_config)})

    @classmethod
    def for_seq_cls(
        cls,
        pooler_config: PoolerConfig,
        *,
        pooling: PoolingMethod | None = None,
        classifier: Callable[[torch.Tensor], Any] | None = None,
    ) -> DispatchPooler:
        """Scores of a layer that classifies whole texts."""
        return cls({"classify": pooler_for_classify(pooler_config, pooling=pooling, classifier=classifier)})

    def get_supported_tasks(self) -> tuple[PoolingTask, ...]:
        return self.tasks

    def forward(self, hidden_states: torch.Tensor, pooling_metadata: PoolingMetadata) -> list[torch.Tensor]:
        if len(self.tasks) == 1:
            only: list[torch.Tensor] = self.poolers[self.tasks[0]](hidden_states, pooling_metadata)
            return only
        found: dict[int, torch.Tensor] = {}
        for task, pooler in self.poolers.items():
            own = [item for item in pooling_metadata.items if (item.params.task or self.tasks[0]) == task]
            part = replace(pooling_metadata, items=tuple(own))
            if own:
                due = [item.first for item in part.due]
                found |= zip(due, pooler(hidden_states, part), strict=True)
        return [found[item.first] for item in pooling_metadata.due]


def pooler_for_embed(
    pooler_config: PoolerConfig,
    *,
    pooling: PoolingMethod | None = None,
    projector: Callable[[torch.Tensor], Any] | None = None,
) -> SequencePooler:
    """A pooler for embeddings; `projector` is a layer after pooling, where the model has one."""
    return SequencePooler("embed", pooling or method_of(pooler_config), EmbeddingHead(projector))


def pooler_for_classify(
    pooler_config: PoolerConfig,
    *,
    pooling: PoolingMethod | None = None,
    classifier: Callable[[torch.Tensor], Any] | None = None,
) -> SequencePooler:
    """A pooler for classes; without a `classifier`, hidden states are scores already."""
    return SequencePooler("classify", pooling or method_of(pooler_config), ClassifierHead(classifier))


def method_of(pooler_config: PoolerConfig) -> PoolingMethod:
    """The method that the configuration names."""
    return METHODS[pooler_config.pooling_type]()
