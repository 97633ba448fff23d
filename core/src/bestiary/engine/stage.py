"""`Stage`: the model, or this rank's part of it, as a function of a step's input. It knows of no plan."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TypeAlias

import torch
from torch import nn

from bestiary.api.config import VllmConfig
from bestiary.api.errors import BrokenPlugin, EngineError
from bestiary.api.intermediate import IntermediateTensors
from bestiary.nn.context import ForwardContext, forward_context
from bestiary.nn.graphs import Results
from bestiary.nn.ops.by_value import by_value
from bestiary.nn.ops.registry import ChosenOps
from bestiary.nn.ops.sampling import best_tokens
from bestiary.nn.parallel import Groups, use_groups
from bestiary.nn.pooling import Pooler

from .batch import ForwardBatch
from .pooler import checked_vectors
from .vocabulary import BestTokens, DividedVocabulary

Made: TypeAlias = torch.Tensor | Results | BestTokens | list[torch.Tensor] | None
"""What a model's last stage makes in a step: logits, alone or with the largest of each row and its id, or these alone;
or the vectors of prompts that end; None where nothing is due."""


class Stage:
    """Owned by the runner.

    Args:
        model: loaded and finished; its attention layers have their backends.
        ops: the versions of ops that it computes with.
        vocab_size: the width that its logits must have.
        groups: among whom the model is divided.
        pooler: makes vectors of its hidden states, where no logits are wanted.
        kv_caches, layer_states: what its layers read and write, by their names.
    """

    def __init__(
        self,
        model: nn.Module,
        vllm_config: VllmConfig,
        ops: ChosenOps,
        vocab_size: int,
        groups: Groups,
        pooler: Pooler | None,
        kv_caches: dict[str, torch.Tensor],
        layer_states: dict[str, tuple[torch.Tensor, ...]],
    ) -> None:
        self.model: Any = model
        self.ops = ops
        self.groups = groups
        self.pooler = pooler
        self.vocabulary = DividedVocabulary(model)
        self._kv_caches, self._layer_states = kv_caches, layer_states
        self._vocab_size = vocab_size
        self._dtype = vllm_config.model_config.dtype
        self._deterministic = vllm_config.model_config.deterministic
        self._device = torch.device(vllm_config.device_config.device)

    @property
    def divided(self) -> bool:
        """Whether ranks share each layer, so that they wait for each other within a step."""
        return self.groups.tensor.world_size > 1

    def empty(self, batch: ForwardBatch) -> IntermediateTensors:
        """What this stage receives from the one before, to be filled."""
        made: IntermediateTensors = self.model.make_empty_intermediate_tensors(
            len(batch.input_ids), self._dtype, self._device
        )
        return made

    @torch.inference_mode()
    def compute(
        self, batch: ForwardBatch, received: IntermediateTensors | None = None, *, all_logits: bool = False
    ) -> Made | IntermediateTensors:
        """This stage's part: what the next one receives, or, from the last, logits or vectors. Without `all_logits`,
        best tokens alone where ranks divide the vocabulary and nothing more is wanted."""
        with self._in_force():
            hidden = self._hidden(batch, received)
            if isinstance(hidden, IntermediateTensors):
                return hidden
            if self.pooler is not None:
                return self._pool(self.pooler, batch, hidden)
            if batch.logits_rows is not None:
                if not len(batch.logits_rows):
                    return None
                hidden = hidden[batch.logits_rows]
            if not all_logits and self.vocabulary.serves(batch):
                best = self._best(batch, hidden)
                if best is not None:
                    return best
            return self._logits(batch, hidden)

    @contextmanager
    def _in_force(self) -> Iterator[None]:
        """While it lasts, what the model computes with: its groups, its ops, its order of summation."""
        needed = self._deterministic and self._device.type == "cpu"  # a GPU's ops do not look at where a number lies
        elementwise = by_value() if needed else nullcontext()  # type: ignore[no-untyped-call]
        with use_groups(self.groups), self.ops.active(), elementwise:
            yield

    def _hidden(
        self, batch: ForwardBatch, received: IntermediateTensors | None = None
    ) -> torch.Tensor | IntermediateTensors:
        """Hidden states ``[tokens, hidden]``, or, before the last stage, what the next one receives."""
        more = {} if received is None else {"intermediate_tensors": received}
        with forward_context(ForwardContext(batch.attention, self._kv_caches, batch.lora, self._layer_states)):
            hidden: torch.Tensor = self.model(input_ids=batch.input_ids, positions=batch.positions, **more)
        if not self.groups.pipeline.is_last_rank:
            return _checked_intermediates(hidden)
        _check_shape("forward", hidden, len(batch.input_ids), None)
        return hidden

    def _logits(self, batch: ForwardBatch, hidden: torch.Tensor) -> torch.Tensor:
        with forward_context(ForwardContext(batch.attention, self._kv_caches, batch.logits_lora)):
            logits: torch.Tensor = self.model.compute_logits(hidden_states=hidden)
        _check_shape("compute_logits", logits, len(hidden), self._vocab_size)
        return logits

    def _best(self, batch: ForwardBatch, hidden: torch.Tensor) -> BestTokens | None:
        with forward_context(ForwardContext(batch.attention, self._kv_caches, batch.logits_lora)):
            return self.vocabulary.best(hidden, [state for state, _ in batch.sampled])

    def _pool(self, pooler: Pooler, batch: ForwardBatch, hidden: torch.Tensor) -> list[torch.Tensor]:
        if batch.pooling is None:
            raise EngineError("a request that generates has come to a runner that pools")
        with forward_context(ForwardContext(batch.attention, self._kv_caches, batch.logits_lora)):
            return checked_vectors(pooler, pooler(hidden, batch.pooling), batch.pooling)

    def hidden_and_best(self, batch: ForwardBatch) -> Results:
        """A step's hidden states, and best tokens where ranks can find these by their own parts of the vocabulary.
        Not logits: these go from all ranks to all, and few steps need them."""
        with self._in_force():
            hidden = self._hidden(batch)
            if isinstance(hidden, IntermediateTensors):
                raise EngineError("steps of a pipeline are not recorded")
            best = self._best(batch, hidden)
        return (hidden,) if best is None else (hidden, best.logits, best.ids)

    def wanted_of(self, batch: ForwardBatch, results: Results, all_logits: bool) -> Made:
        """What `batch` wants of what `hidden_and_best` gave."""
        hidden, *best = results
        with self._in_force():
            if best and not all_logits and self.vocabulary.serves(batch):
                greedy = all(state.sampling.greedy for state, _ in batch.sampled)
                return BestTokens(*best) if greedy else self._best(batch, hidden)
            return self._logits(batch, hidden)[: len(batch.sampled)]

    def logits_and_best(self, batch: ForwardBatch) -> Results:
        """A step's logits, the largest of each row, and its id."""
        logits = self.compute(batch)
        if not isinstance(logits, torch.Tensor):
            raise EngineError("a decode step made no logits")
        with self.ops.active():
            return logits, *best_tokens(logits)


def _checked_intermediates(found: object) -> IntermediateTensors:
    if isinstance(found, IntermediateTensors):
        return found
    raise BrokenPlugin(
        "the model's forward returned what it must not", field="forward", value=type(found).__name__,
        limit="IntermediateTensors, from every pipeline stage but the last",
    )  # fmt: skip


def _check_shape(method: str, found: object, rows: int, width: int | None) -> None:
    """What a model's method returned must be a row for each row it was given."""
    shape = tuple(found.shape) if isinstance(found, torch.Tensor) else None
    wanted = (rows, "hidden") if width is None else (rows, width)
    fits = shape is not None and len(shape) == 2 and shape[0] == rows and width in (None, shape[1])
    if not fits or not isinstance(found, torch.Tensor) or not found.is_floating_point():
        raise BrokenPlugin(
            f"the model's {method} returned what it must not",
            field=method,
            value=type(found).__name__ if shape is None else f"{found.dtype} {list(shape)}",  # type: ignore[attr-defined]
            limit=f"floating-point numbers of shape {list(wanted)}",
        )
