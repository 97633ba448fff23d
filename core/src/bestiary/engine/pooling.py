"""Which models pool, and what requests may ask of one that does. No torch.

A class that claims `is_pooling_model` has a pooler of its own. Any other decoder can be run for its hidden states, of
which the engine's pooler makes embeddings; its language-model head is not used then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

from bestiary.api.config import VllmConfig
from bestiary.api.conformance import is_pooling_model, is_text_generation_model
from bestiary.api.errors import ModelError, RequestError, UsageError
from bestiary.api.pooling import PoolerConfig, PoolingParams, PoolingTask
from bestiary.api.protocols import PoolingTypeStr
from bestiary.api.sampling import SamplingParams

from .arguments import EngineArgs


@dataclass(frozen=True, slots=True)
class PoolingOffer:
    """What requests may ask of a model that pools.

    Attributes:
        tasks: those it can do; the first is meant where none is named.
        embedding_size: how many numbers an embedding has; None where nobody knows before the first is made.
    """

    tasks: tuple[PoolingTask, ...]
    embedding_size: int | None = None

    def check(self, params: PoolingParams) -> None:
        """Raises `RequestError`: the model cannot do that."""
        task = params.task or self.tasks[0]
        if task not in self.tasks:
            raise RequestError(
                f"this model does not {task}", code="TASK_UNSUPPORTED", field="task", value=task,
                limit=" or ".join(self.tasks),
            )  # fmt: skip
        size = self.embedding_size if task == "embed" else None
        if params.dimensions is not None and (size is None or params.dimensions > size):
            limit = "nothing: this model's vectors cannot be cut" if size is None else f"at most {size}"
            raise RequestError(
                f"{params.dimensions} dimensions cannot be had of this model", field="dimensions",
                value=params.dimensions, limit=limit,
            )  # fmt: skip


def check_kind(params: SamplingParams | PoolingParams, offer: PoolingOffer | None) -> None:
    """Refuse what this engine was not made for: one that generates pools nothing, and the other way round.

    Args:
        offer: of an engine that pools; None of one that generates.

    Raises:
        RequestError: the wrong kind, or what this model cannot do.
    """
    if isinstance(params, PoolingParams) and offer is not None:
        offer.check(params)
    elif isinstance(params, PoolingParams):
        raise RequestError(
            "this engine generates text: it gives no embeddings", code="WRONG_RUNNER", field="runner",
            value="generate", limit="runner='pooling'", fix="LLM(model, runner='pooling'), or bestiary embed MODEL",
        )  # fmt: skip
    elif offer is not None:
        raise RequestError(
            "this engine makes vectors of prompts: it generates no text", code="WRONG_RUNNER", field="runner",
            value="pooling", limit="runner='generate'", fix="LLM(model, runner='generate'); vectors are LLM.embed's",
        )  # fmt: skip


def with_runner(
    config: VllmConfig,
    args: EngineArgs,
    model_class: type,
    stated: Callable[[], PoolingTypeStr | None] = lambda: None,
) -> VllmConfig:
    """The configuration with `runner_type` and `pooler_config` settled: "auto" is what the class is made for, and the
    pooling is what the user asks for, else what the model's files say (`stated`), else the class.

    Raises:
        ModelError: the class cannot do what was asked. UsageError: a pooling that is none, or is not wanted.
    """
    pools = is_pooling_model(model_class)
    runner = args.runner if args.runner != "auto" else "pooling" if pools else "generate"
    if runner == "pooling":
        own = getattr(model_class, "default_pooling_type", "LAST") if pools else "LAST"
        pooler = PoolerConfig(pooling_type=cast(PoolingTypeStr, args.pooling_type or stated() or own))
        return replace(config, model_config=replace(config.model_config, runner_type="pooling", pooler_config=pooler))
    if not is_text_generation_model(model_class):
        raise ModelError(
            f"{model_class.__name__} generates no text", code="RUNNER_UNSUPPORTED", field="runner", value=args.runner,
            fix="runner='pooling' (--runner pooling), or leave it out",
        )  # fmt: skip
    if args.pooling_type is not None:
        raise UsageError(
            "nothing is pooled where text is generated", field="pooling_type", value=args.pooling_type,
            fix="runner='pooling' (--runner pooling), or leave it out",
        )  # fmt: skip
    return config
