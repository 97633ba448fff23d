"""The rotary layer whose frequencies depend on how long a sequence's prompt is."""

from __future__ import annotations

from bisect import bisect_left

import torch
from torch import Tensor

from bestiary.api.errors import EngineError
from bestiary.nn.context import get_forward_context

from .embedding import RotaryEmbedding
from .frequencies import Frequencies


class PromptRotaryEmbedding(RotaryEmbedding):
    """Rotates each sequence by the set of frequencies that its prompt's length chooses (`Frequencies.longest_prompts`).

    The length is known when a request is admitted and never changes, so a key depends neither on how the prompt was cut
    nor on how far the answer has come. Keys of two sets differ from the first token on: `cache_salt` keeps them apart.

    Attributes:
        cos_sin_cache: fp32 ``[sets * length, rotary_dim]``, one set after another.
    """

    bounds: Tensor

    def __init__(
        self,
        head_size: int,
        length: int,
        is_neox_style: bool,
        frequencies: Frequencies,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(head_size, length, is_neox_style, frequencies, dtype)
        self.longest_prompts = frequencies.longest_prompts
        self.register_buffer("bounds", torch.tensor(self.longest_prompts), persistent=False)

    def cache_salt(self, prompt_len: int) -> int:
        """The number of the set."""
        return bisect_left(self.longest_prompts, prompt_len)

    def _gather(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        step = get_forward_context().attention
        if step.prompt_lens is None:
            raise EngineError(
                "this rotary embedding depends on how long each prompt is, and the step does not say",
                field="AttentionMetadata.prompt_lens", limit="one length a sequence",
            )  # fmt: skip
        chosen = torch.searchsorted(self.bounds, step.prompt_lens)
        of_each = chosen.repeat_interleave(step.query_start.diff(), output_size=positions.shape[0])
        return super()._gather(positions + of_each * self.max_position_embeddings, dtype)
