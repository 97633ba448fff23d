"""What an engine process and its parent say to each other.

The parent says `Launch` first, then what users want. The child says `Phase` and `Loaded` while it starts, `Stepped`
after every step, `Beat` all the time, and `Failed` as its last word. What a rank of a divided model would be told has
the same form here (`parallel/messages.py`).
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from bestiary.api.errors import BestiaryError, EngineError
from bestiary.api.lora import LoRAInfo
from bestiary.engine.admission import Limits
from bestiary.engine.checks import RequestChecks
from bestiary.engine.parallel.messages import AddRequest, EndRequest, Trouble, UseTokenizer
from bestiary.engine.pooling import PoolingOffer
from bestiary.engine.sequence import SequenceUpdate

T = TypeVar("T")
_NONSENSE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError, BestiaryError)
"""What decoding raises; the last for bad sampling parameters."""


class Launch(msgspec.Struct, frozen=True, tag="launch"):
    """The engine's arguments, and what ends an answer by the tokenizer's account.

    Attributes:
        models, unnamed: what was registered by hand, as `by_hand.all_of` tells them apart.
    """

    arguments: dict[str, Any]
    eos_token_ids: tuple[int, ...] = ()
    models: dict[str, str] = msgspec.field(default_factory=dict)
    unnamed: dict[str, str] = msgspec.field(default_factory=dict)


class LoadAdapter(msgspec.Struct, frozen=True, tag="load_adapter"):
    """Read an adapter and keep it; answered under `number`."""

    number: int
    name: str
    path: str


class DropAdapter(msgspec.Struct, frozen=True, tag="drop_adapter"):
    """Forget an adapter; answered under `number`."""

    number: int
    name: str


class Quit(msgspec.Struct, frozen=True, tag="quit"):
    """Nothing more is wanted."""


ToEngine = Launch | UseTokenizer | AddRequest | EndRequest | LoadAdapter | DropAdapter | Quit


class Phase(msgspec.Struct, frozen=True, tag="phase"):
    """A part of the start-up was done, and took so many seconds."""

    name: str
    seconds: float


class ModelInfo(msgspec.Struct, frozen=True):
    """What a model and its engine are, as far as somebody in another process wants to know.

    Attributes:
        name: as the user calls it. architecture, model_class, distribution, version: who implements it.
        parameters: numbers that the model has on this rank, those that are shared once. weight_bytes: the memory that
            they take in the form in which they are computed with.
        max_model_len, vocab_size, eos_token_ids, cache_tokens, max_prompt: what requests are checked against.
        max_num_seqs: answers computed at once, over all copies. num_kv_blocks, block_size: the KV cache.
        attention_backend, ops: what was chosen. capabilities: what the class claims, by its protocols' names.
        adapters: those added at the start. lora: whether others can be added.
        pooling: what may be asked of it where it makes vectors; None where it generates text.
    """

    name: str
    architecture: str
    model_class: str
    distribution: str
    version: str
    dtype: str
    quantization: str | None
    device: str
    parameters: int
    weight_bytes: int
    max_model_len: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    cache_tokens: int
    max_prompt: int | None
    max_num_seqs: int
    num_kv_blocks: int
    block_size: int
    attention_backend: str
    ops: dict[str, str]
    capabilities: tuple[str, ...]
    lora: bool
    adapters: tuple[LoRAInfo, ...] = ()
    pooling: PoolingOffer | None = None

    @property
    def checks(self) -> RequestChecks:
        """What the engine would ask of a request."""
        limits = Limits(self.max_model_len, self.cache_tokens, self.max_prompt)
        return RequestChecks(self.vocab_size, frozenset(self.eos_token_ids), limits, self.pooling)


class Loaded(msgspec.Struct, frozen=True, tag="loaded"):
    """Requests can come."""

    info: ModelInfo


class EngineStats(msgspec.Struct, frozen=True):
    """How an engine is now, and what it did since its start.

    Attributes:
        running, waiting: answers. blocks, used_blocks, cached_blocks: of the KV cache.
        prefix_queries, prefix_hits: prompt tokens looked up in the prefix cache, and found there.
        steps, tokens: steps taken, and tokens computed in them. step_seconds: all of them together.
        preemptions: requests that lost their blocks. numerical_errors: tokens that could not be drawn.
    """

    running: int = 0
    waiting: int = 0
    blocks: int = 0
    used_blocks: int = 0
    cached_blocks: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    steps: int = 0
    tokens: int = 0
    step_seconds: float = 0.0
    preemptions: int = 0
    numerical_errors: int = 0


class Stepped(msgspec.Struct, frozen=True, tag="stepped"):
    """What happened to requests."""

    updates: tuple[SequenceUpdate, ...]
    stats: EngineStats


class Answer(msgspec.Struct, frozen=True, tag="answer"):
    """The adapter that a command was about, or why it was refused."""

    number: int
    info: LoRAInfo | None = None
    error: Trouble | None = None


class Beat(msgspec.Struct, frozen=True, tag="beat"):
    """The process lives; `moves` counts the messages it took and the steps it did, and it is `busy` with the next."""

    moves: int
    busy: bool


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The engine ends with an error; `kind` is the name of its class."""

    kind: str
    error: Trouble


FromEngine = Phase | Loaded | Stepped | Answer | Beat | Failed

encode = msgspec.msgpack.encode
_to_engine: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
_from_engine: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)


def decode_to_engine(data: bytes) -> ToEngine:
    return _decoded(_to_engine, data)


def decode_from_engine(data: bytes) -> FromEngine:
    return _decoded(_from_engine, data)


def _decoded(decoder: msgspec.msgpack.Decoder[T], data: bytes) -> T:
    """Raises `EngineError` for anything but a message of the right kind; nothing of it is used then."""
    try:
        return decoder.decode(data)
    except _NONSENSE as error:
        raise EngineError(f"the other process sent what is no message: {error}", code="BAD_MESSAGE") from error
