"""Tokens from a vocabulary that is divided among ranks: where a step needs each row's largest logit alone, ranks tell
each other a number and an id a row rather than all their logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bestiary.nn.logits import LocalLogits, local_logits
from bestiary.nn.ops.sampling import best_tokens
from bestiary.nn.parallel import get_tp_group, tensor_model_parallel_all_gather

from .batch import ForwardBatch
from .device_draws import draw_parts, on_device
from .notices import notice
from .request_state import RequestState
from .sampler import takes_the_best


@dataclass(frozen=True, slots=True)
class BestTokens:
    """Each row's largest logit, or score of a draw, of all ranks together, and its id (int64)."""

    logits: Tensor
    ids: Tensor


class DividedVocabulary:
    """Finds best tokens by ranks' own columns, for models whose `compute_logits` gives what `LogitsProcessor` made.

    Whether a model does is tried once, in the first step that could profit, by all ranks in the same one. A model that
    changes its logits afterwards, may do so by columns of the whole vocabulary: it goes on with all of them.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._fit: bool | None = None

    def serves(self, batch: ForwardBatch) -> bool:
        """Whether a step wants nothing but best tokens, of a vocabulary that is divided."""
        if get_tp_group().world_size == 1 or self._fit is False or batch.prompt_rows or not batch.sampled:
            return False
        draws = on_device(batch.input_ids)
        return all(takes_the_best(state, draws) for state, _ in batch.sampled)

    def best(self, hidden: Tensor, states: Sequence[RequestState] = ()) -> BestTokens | None:
        """Of ``[rows, hidden]``; None where this model needs all logits. Every rank of the group must call it.

        Where the first rows are those of `states`, only of these, and drawn as they ask; otherwise the largest logits.
        """
        if self._fit is None:
            self._fit = self._try(hidden)
        if not self._fit:
            return None
        with local_logits() as local:
            self._model.compute_logits(hidden_states=hidden)
        return joined(local, states)

    def _try(self, hidden: Tensor) -> bool:
        """Whether what the model returns is this rank's columns as the processor made them, on all ranks."""
        why = ""
        with torch.inference_mode(mode=False), torch.no_grad(), local_logits() as local:  # where changes are counted
            try:
                made = self._model.compute_logits(hidden_states=hidden.clone())
                if made is not local.made or local.changed:
                    why = "changes what LogitsProcessor made"
            except (RuntimeError, IndexError, ValueError, TypeError) as error:  # it took the columns for all of them
                why = f"does not work on a part of the vocabulary ({type(error).__name__})"
        fits = bool(tensor_model_parallel_all_gather(torch.tensor([not why], device=hidden.device)).all())
        if not fits:
            why = why or "does not work on another rank's part of the vocabulary"
            notice(f"logits of all ranks are gathered for every token: the model's compute_logits {why}")
        return fits


def joined(local: LocalLogits, states: Sequence[RequestState] = ()) -> BestTokens:
    """The best of all ranks' columns; of equal ones the lowest id. One collective of 16 bytes a row."""
    logits = local.logits[: len(states)] if states else local.logits
    if not logits.shape[1]:  # this rank has nothing but padding
        peaks = torch.full((len(logits),), -torch.inf, device=logits.device)
        ids = torch.zeros(len(logits), device=logits.device)
    elif all(state.sampling.greedy for state in states):
        peaks, ids = best_tokens(logits)
        ids = ids + local.first
    else:
        peaks, ids = draw_parts(logits, states, local.first)
    pair = torch.stack((peaks.double(), ids.double()))  # exact: ids are far below 2**53
    every = tensor_model_parallel_all_gather(pair.unsqueeze(0), 0)
    peak, rank = every[:, 0].max(0)
    return BestTokens(peak.float(), every[:, 1].gather(0, rank.unsqueeze(0)).squeeze(0).long())


def sampled_rows(best: BestTokens, sampled: Sequence[tuple[RequestState, int]]) -> BestTokens:
    """Those of the rows that somebody draws from."""
    rows = [row for _, row in sampled]
    return best if rows == list(range(len(best.ids))) else BestTokens(best.logits[rows], best.ids[rows])
