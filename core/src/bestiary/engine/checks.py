"""What a request must satisfy, by facts of the model and its engine alone. No torch.

The engine asks before it admits; whoever sends requests to an engine in another process asks beforehand, with the same
facts, so that a refusal costs no message.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bestiary.api.errors import RequestError
from bestiary.api.pooling import PoolingParams
from bestiary.api.sampling import SamplingParams

from .admission import Limits
from .pooling import PoolingOffer, check_kind

_ID_LISTS = ("stop_token_ids", "bad_token_ids", "allowed_token_ids")


@dataclass(frozen=True, slots=True)
class RequestChecks:
    """Attributes:
    vocab_size: width of the logits; every token id lies below it.
    eos_token_ids: what ends an answer unless `ignore_eos`.
    limits: how long requests may be.
    pooling: what may be asked of a model that makes vectors; None where it generates text.
    """

    vocab_size: int
    eos_token_ids: frozenset[int]
    limits: Limits
    pooling: PoolingOffer | None = None

    def check(self, prompt_token_ids: Sequence[int], params: SamplingParams | PoolingParams, priority: int = 0) -> None:
        """Raises `RequestError`: the engine would never run it, and why."""
        check_kind(params, self.pooling)
        if not isinstance(priority, int) or isinstance(priority, bool) or abs(priority) >= 2**63:
            raise RequestError(
                "a priority is a whole number", field="priority", value=priority, limit="a 64-bit integer"
            )
        self._check_ids("prompt_token_ids", prompt_token_ids)
        if isinstance(params, SamplingParams):
            for name in _ID_LISTS:
                self._check_ids(name, getattr(params, name) or ())
            self._check_ids("logit_bias", tuple(params.logit_bias), by_name=True)
            self._check_drawable(params)
        self.limits.most(len(prompt_token_ids), params)

    def _check_ids(self, field: str, ids: Sequence[int], *, by_name: bool = False) -> None:
        """by_name: the ids are names in an object, and no list."""
        for index, token in enumerate(ids):
            if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < self.vocab_size:
                raise RequestError(
                    "not a token of this model",
                    code="TOKEN_OUT_OF_RANGE",
                    field=f"{field}.{token}" if by_name else f"{field}[{index}]",
                    value=token,
                    limit=f"an integer from 0 to {self.vocab_size - 1}",
                )

    def _check_drawable(self, sampling: SamplingParams) -> None:
        """Some token must be left to draw, also while fewer than `min_tokens` were."""
        banned = set(sampling.bad_token_ids)
        if sampling.min_tokens:
            banned |= {*sampling.stop_token_ids, *(() if sampling.ignore_eos else self.eos_token_ids)}
        allowed = sampling.allowed_token_ids
        left = len(set(allowed) - banned) if allowed is not None else self.vocab_size - len(banned)
        if left < 1:
            raise RequestError(
                "no token is left to draw",
                code="NOTHING_TO_DRAW",
                field="bad_token_ids" if allowed is None else "allowed_token_ids",
                limit="an id that is neither bad nor, while min_tokens are due, one that ends the answer",
            )


def unavailable() -> RequestError:
    """The form of an answer cannot be enforced: nobody has told what text the tokens stand for."""
    return RequestError(
        "the form of an answer is enforced with a tokenizer", code="STRUCTURED_OUTPUTS_UNAVAILABLE",
        field="structured_outputs", fix="without skip_tokenizer_init (--skip-tokenizer-init)",
    )  # fmt: skip
