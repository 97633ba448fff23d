"""What ranks say to each other: typed, encoded by msgspec, never pickled.

Two kinds. A `Tick` goes from rank 0 to all, before each step: what users asked for since the last one. `Drawn` goes
from the rank that drew a plan's tokens, or made its vectors, to all. Between a machine's first rank and those that it
started, `Start` goes one way and `Beat`, `Ready` and `Failed` the other.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Any, Literal, TypeVar

import msgspec

from bestiary.api.errors import BestiaryError, EngineError
from bestiary.api.outputs import TokenLogprobs
from bestiary.api.pooling import PoolingParams
from bestiary.api.sampling import SamplingParams
from bestiary.engine.plan import PooledVector, SampledToken, StepPlan, StepResult

T = TypeVar("T")
E = TypeVar("E", bound=BestiaryError)
_NONSENSE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError, BestiaryError)
"""What decoding raises; the last for bad sampling parameters."""


_NOTHING_DRAWN = SamplingParams(max_tokens=1)


class AddRequest(msgspec.Struct, frozen=True, tag="add"):
    """The arguments of `LLMEngine.add_request`; where `pooling` is given, `sampling` says nothing."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    priority: int = 0
    cache_salt: str | None = None
    lora_name: str | None = None
    pooling: PoolingParams | None = None

    @classmethod
    def of(
        cls,
        request_id: str,
        prompt_token_ids: Iterable[int],
        params: SamplingParams | PoolingParams,
        priority: int = 0,
        cache_salt: str | None = None,
        lora_name: str | None = None,
    ) -> AddRequest:
        """A request for text or for a vector, as `params` are of either."""
        pooling = params if isinstance(params, PoolingParams) else None
        sampling = _NOTHING_DRAWN if isinstance(params, PoolingParams) else params
        return cls(request_id, tuple(prompt_token_ids), sampling, priority, cache_salt, lora_name, pooling)

    @property
    def params(self) -> SamplingParams | PoolingParams:
        return self.pooling or self.sampling

    @property
    def answers(self) -> list[str]:
        """The ids under which its answers are spoken of: its own, or that and a number each."""
        count = self.sampling.n
        return [self.request_id] if count == 1 else [f"{self.request_id}/{index}" for index in range(count)]


class AddAdapter(msgspec.Struct, frozen=True, tag="add_adapter"):
    """Every rank reads its part of an adapter and says whether it fits, before anything else happens."""

    name: str
    path: str
    pinned: bool


class PinAdapter(msgspec.Struct, frozen=True, tag="pin_adapter"):
    """An adapter that came with a request is kept from now on."""

    name: str


class RemoveAdapter(msgspec.Struct, frozen=True, tag="remove_adapter"):
    """Nobody wants it any more."""

    name: str


class EndRequest(msgspec.Struct, frozen=True, tag="end"):
    """A stop string was found in its text, or nobody wants it any more."""

    request_id: str
    reason: Literal["stop", "abort"]
    stop_reason: str | None = None


class Settings(msgspec.Struct, frozen=True, tag="settings"):
    """Rank 0's, before its first step: what ends an answer, and what plans depend on, to be equal everywhere."""

    eos_token_ids: tuple[int, ...]
    values: dict[str, str]


class UseTokenizer(msgspec.Struct, frozen=True, tag="use_tokenizer"):
    """What the forms of answers are enforced with, as the `tokenizers` library writes it; before the first of them."""

    tokenizer_json: str


class Close(msgspec.Struct, frozen=True, tag="close"):
    """No step follows."""


Event = Settings | UseTokenizer | AddRequest | EndRequest | AddAdapter | PinAdapter | RemoveAdapter | Close


class Tick(msgspec.Struct, frozen=True):
    """What happened since the last one, in order. `step`: whether a step follows, or only another tick."""

    events: tuple[Event, ...] = ()
    step: bool = True


class Drawn(msgspec.Struct, frozen=True):
    """A `StepResult`, with a checksum of the plan that it belongs to."""

    step: int
    check: int
    sampled: dict[str, SampledToken]
    prompt_logprobs: dict[str, list[TokenLogprobs]]
    pooled: dict[str, PooledVector] = msgspec.field(default_factory=dict)

    @classmethod
    def of(cls, plan: StepPlan, result: StepResult) -> Drawn:
        return cls(result.step, checksum(plan), result.sampled, result.prompt_logprobs, result.pooled)

    @property
    def result(self) -> StepResult:
        return StepResult(self.step, self.sampled, self.prompt_logprobs, self.pooled)


def checksum(plan: StepPlan) -> int:
    """Equal where two ranks derived the same plan, as far as its items go."""
    return zlib.crc32(msgspec.msgpack.encode(plan.items), plan.step)


class Start(msgspec.Struct, frozen=True, tag="start"):
    """All that a started rank is told: the engine's arguments, its seat, configuration that a function made, and
    the class that was registered by hand, as ``"module:Class"``."""

    arguments: dict[str, Any]
    config_data: dict[str, Any] | None
    seat: dict[str, Any]
    eos_token_ids: tuple[int, ...]
    models: dict[str, str] = msgspec.field(default_factory=dict)


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """This rank built its part of the model and will meet the others now."""


class Beat(msgspec.Struct, frozen=True, tag="beat"):
    """This process lives; its last step was number `ticks`, and it may be `waiting` for others in the middle of it."""

    ticks: int
    waiting: bool


class Trouble(msgspec.Struct, frozen=True):
    """An error, in the form of `BestiaryError.as_dict`."""

    code: str
    message: str
    field: str | None = None
    rule: str | None = None
    value: bool | int | float | str | None = None
    details: tuple[str, ...] = ()
    fix: str | None = None

    @classmethod
    def of(cls, error: BestiaryError) -> Trouble:
        said = error.as_dict()
        return msgspec.convert({name: _sendable(value) for name, value in said.items()}, cls)

    def raised_as(self, kind: type[E], prefix: str = "") -> E:
        """The error again, as one of `kind`; `prefix` goes before its message."""
        return kind(
            prefix + self.message,
            code=self.code, field=self.field, limit=self.rule, value=self.value, details=self.details, fix=self.fix,
        )  # fmt: skip


def sendable(text: str) -> str:
    """`text` as UTF-8 can have it: an error may quote what is no Unicode, a file's name or a plugin's words."""
    return text.encode(errors="replace").decode()


def _sendable(value: object) -> object:
    if isinstance(value, list):
        return [sendable(str(each)) for each in value]
    return sendable(value) if isinstance(value, str) else value


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """This rank ends with an error."""

    error: Trouble


FromWorker = Ready | Beat | Failed

encode = msgspec.msgpack.encode


def decode_tick(data: bytes) -> Tick:
    return _decoded(_tick, data)


def decode_drawn(data: bytes) -> Drawn:
    return _decoded(_drawn, data)


def decode_start(data: bytes) -> Start:
    return _decoded(_start, data)


def decode_from_worker(data: bytes) -> FromWorker:
    return _decoded(_from_worker, data)


def _decoded(decoder: msgspec.msgpack.Decoder[T], data: bytes) -> T:
    """Raises `EngineError` for anything but a message of the right kind; nothing of it is used then."""
    try:
        return decoder.decode(data)
    except _NONSENSE as error:
        raise EngineError(f"a rank sent what is no message: {error}", code="BAD_MESSAGE") from error


def decode_trouble(data: bytes) -> dict[str, Any]:
    return _trouble.decode(data)


_trouble = msgspec.msgpack.Decoder(dict[str, Any])
_tick = msgspec.msgpack.Decoder(Tick)
_drawn = msgspec.msgpack.Decoder(Drawn)
_start = msgspec.msgpack.Decoder(Start)
_from_worker: msgspec.msgpack.Decoder[FromWorker] = msgspec.msgpack.Decoder(FromWorker)
