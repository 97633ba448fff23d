"""`SamplingParams`: how the tokens of one request are chosen. Names and defaults follow vLLM's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from .errors import RequestError
from .structured import StructuredOutputsParams

MAX_LOGPROBS = 20
MAX_N = 64
MAX_LOGIT_BIAS = 1024
MAX_STOP = 64
MAX_STOP_CHARS = 1024
MAX_IDS = 100_000
MAX_TOKENS = 2**31 - 1


MIN_REPETITION_PENALTY = 0.01
"""Logits are divided by it, and must stay finite."""


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """Everything that decides which token comes next; checked when made, never changed after.

    Attributes:
        n: how many independent answers to one prompt, 1…64.
        temperature: 0 is greedy; otherwise logits are divided by it.
        top_p, top_k, min_p: keep the smallest set of tokens whose probability reaches `top_p`; the `top_k` likeliest
            (0 or -1: all); those at least `min_p` times as likely as the likeliest.
        repetition_penalty: divides positive and multiplies negative logits of tokens seen (CTRL, arXiv 1909.05858).
        presence_penalty, frequency_penalty: subtracted once, or per occurrence, for tokens already generated.
        seed: draws depend on (seed, position) alone, so never on the batch. None or -1: derived from the engine's seed
            and the request's number.
        max_tokens: None means as many as the context allows. min_tokens: before it no stop id is drawn,
            and no stop string ends the answer.
        stop, stop_token_ids: strings and ids that end the answer; `include_stop_str_in_output` keeps the string.
        ignore_eos: the model's end-of-sequence ids do not end the answer.
        logprobs: with each token, its own log-probability and those of the `logprobs` likeliest, from the model's raw
            distribution. prompt_logprobs: the same for the prompt's tokens.
        logit_bias: token id → added to its logit, -100…100. allowed_token_ids: nothing else is drawn.
        bad_token_ids: never drawn.
        structured_outputs: the form of the answer; a mapping is taken for a `StructuredOutputsParams`. Where it allows
            nothing more the answer ends, also before `min_tokens` and under `ignore_eos`.
        detokenize, skip_special_tokens: whether text is made, and whether special tokens appear in it. shown_token_ids:
            special tokens that appear all the same, being marks that somebody looks for.

    None stands for an empty list or mapping, as in vLLM.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    max_tokens: int | None = 16
    min_tokens: int = 0
    stop: Sequence[str] | str = ()
    stop_token_ids: Sequence[int] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    allowed_token_ids: Sequence[int] | None = None
    bad_token_ids: Sequence[int] = ()
    detokenize: bool = True
    skip_special_tokens: bool = True
    structured_outputs: StructuredOutputsParams | None = None
    shown_token_ids: Sequence[int] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", (self.stop,) if isinstance(self.stop, str) else _listed("stop", self.stop))
        for name in ("stop_token_ids", "bad_token_ids", "shown_token_ids"):
            object.__setattr__(self, name, _listed(name, getattr(self, name)))
        if self.allowed_token_ids is not None:
            object.__setattr__(self, "allowed_token_ids", _listed("allowed_token_ids", self.allowed_token_ids))
        object.__setattr__(self, "logit_bias", {} if self.logit_bias is None else self.logit_bias)
        object.__setattr__(self, "top_k", 0 if self.top_k == -1 else self.top_k)
        object.__setattr__(self, "seed", None if self.seed == -1 else self.seed)
        if self.structured_outputs is not None:
            object.__setattr__(self, "structured_outputs", StructuredOutputsParams.of(self.structured_outputs))
        self._check_numbers()
        self._check_lists()

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return tuple(self.stop)

    def child(self, index: int) -> SamplingParams:
        """The parameters of answer number `index` of a request with `n` > 1: its own seed, n = 1."""
        seed = None if self.seed is None else (self.seed + index * 0x9E3779B97F4A7C15) % 2**63
        return replace(self, n=1, seed=seed)

    def _check_numbers(self) -> None:
        _integer("n", self.n, 1, MAX_N)
        _number("temperature", self.temperature, 0.0, 100.0)
        _number("top_p", self.top_p, 0.0, 1.0, exclusive_low=True)
        _integer("top_k", self.top_k, 0, 2**31 - 1)
        _number("min_p", self.min_p, 0.0, 1.0)
        _number("repetition_penalty", self.repetition_penalty, MIN_REPETITION_PENALTY, 100.0)
        _number("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _number("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        if self.temperature != 0.0 and self.temperature < 1e-3:
            raise _refuse("temperature", self.temperature, "0 (greedy) or at least 0.001")
        if self.seed is not None:
            _integer("seed", self.seed, -(2**63), 2**64 - 1)
            object.__setattr__(self, "seed", self.seed % 2**63)
        if self.max_tokens is not None:
            _integer("max_tokens", self.max_tokens, 1, MAX_TOKENS)
        _integer("min_tokens", self.min_tokens, 0, MAX_TOKENS if self.max_tokens is None else self.max_tokens)
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                _integer(name, getattr(self, name), 0, MAX_LOGPROBS)
        for name in ("include_stop_str_in_output", "ignore_eos", "detokenize", "skip_special_tokens"):
            if not isinstance(getattr(self, name), bool):
                raise _refuse(name, getattr(self, name), "true or false")

    def _check_lists(self) -> None:
        if len(self.stop_strings) > MAX_STOP or not all(
            isinstance(stop, str) and 0 < len(stop) <= MAX_STOP_CHARS for stop in self.stop_strings
        ):
            raise _refuse("stop", self.stop, f"at most {MAX_STOP} strings of 1 to {MAX_STOP_CHARS} characters")
        if self.stop and not self.detokenize:
            raise _refuse("stop", self.stop, "stop strings need detokenize=True")
        for name in ("stop_token_ids", "bad_token_ids", "allowed_token_ids", "shown_token_ids"):
            if len(getattr(self, name) or ()) > MAX_IDS:
                raise _refuse(name, len(getattr(self, name)), f"at most {MAX_IDS} ids")
            for token in getattr(self, name) or ():
                _integer(name, token, 0, 2**31 - 1)
        if self.allowed_token_ids is not None and not set(self.allowed_token_ids) - set(self.bad_token_ids):
            raise _refuse("allowed_token_ids", self.allowed_token_ids, "at least one id that is not in bad_token_ids")
        if not isinstance(self.logit_bias, Mapping):
            raise _refuse("logit_bias", self.logit_bias, "a mapping from token ids to numbers")
        if len(self.logit_bias) > MAX_LOGIT_BIAS:
            raise _refuse("logit_bias", len(self.logit_bias), f"at most {MAX_LOGIT_BIAS} entries")
        for token, bias in self.logit_bias.items():
            _integer("logit_bias", token, 0, 2**31 - 1)
            _number("logit_bias", bias, -100.0, 100.0)


def _listed(name: str, value: object) -> tuple[object, ...]:
    """A list as a tuple; None is an empty one."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable | None):
        raise _refuse(name, value, "a list")
    return () if value is None else tuple(value)


def _refuse(name: str, value: object, rule: str) -> RequestError:
    return RequestError(f"{name} must be {rule}", field=name, limit=rule, value=value)


def _integer(name: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise _refuse(name, value, f"an integer from {low} to {high}")


def _number(name: str, value: object, low: float, high: float, *, exclusive_low: bool = False) -> None:
    number = isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool))
    if not number or value != value or not low <= value <= high or (exclusive_low and value == low):  # type: ignore[operator]
        raise _refuse(name, value, f"a number {'above' if exclusive_low else 'from'} {low} to {high}")
