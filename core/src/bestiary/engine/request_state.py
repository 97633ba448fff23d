"""What the runner remembers of each request between steps: its tokens, and what sampling needs of them."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from bestiary.nn.pooling import Partial

from .plan import NewRequest

if TYPE_CHECKING:
    from torch import Tensor

    from .structured.follower import Follower


class RequestState:
    """One request as the runner sees it; owned by the runner.

    Attributes:
        tokens: prompt and everything drawn so far.
        output_counts: how often each token was drawn.
        banned_until_min: ids not to be drawn while fewer than `min_tokens` tokens were.
        lora_id: its adapter's.
        grammar: what it may draw, where it has a form to keep; made by whoever draws.
        pending: where its newest token is that only the device knows: the ids of a step, and its row; see `pending.py`.
        pooling, partial: what vector is made of the prompt, if any, and what the pooler keeps of it between steps.
    """

    __slots__ = (
        "_prompt_ids", "banned_until_min", "eos_token_ids", "grammar", "lora_id", "output_counts", "partial", "pending",
        "pooling", "prompt_len", "request_id", "sampling", "seed", "tokens",
    )  # fmt: skip

    def __init__(self, new: NewRequest) -> None:
        self.request_id = new.request_id
        self.sampling = new.sampling
        self.seed = new.seed
        self.lora_id = new.lora_name
        self.pooling = new.pooling
        self.partial = Partial()
        self.pending: tuple[Tensor, int] | None = None
        self.tokens: list[int] = list(new.prompt_token_ids)
        self.prompt_len = len(self.tokens)
        self.output_counts: Counter[int] = Counter()
        self._prompt_ids: np.ndarray | None = None
        self.grammar: Follower | None = None
        self.eos_token_ids = new.eos_token_ids
        eos = () if new.sampling.ignore_eos else new.eos_token_ids
        self.banned_until_min = tuple({*eos, *new.sampling.stop_token_ids})

    @property
    def num_outputs(self) -> int:
        return len(self.tokens) - self.prompt_len

    @property
    def position(self) -> int:
        """Of the next token to be drawn, while at most one is known to the device alone."""
        return len(self.tokens) + (self.pending is not None)

    def seen_ids(self) -> np.ndarray:
        """int64: every id of the prompt and of what was drawn; one that is of both comes twice."""
        if self._prompt_ids is None:
            self._prompt_ids = np.unique(np.array(self.tokens[: self.prompt_len], np.int64))
        return np.concatenate((self._prompt_ids, np.fromiter(self.output_counts, np.int64, len(self.output_counts))))

    def append(self, token_id: int) -> None:
        self.tokens.append(token_id)
        self.output_counts[token_id] += 1
