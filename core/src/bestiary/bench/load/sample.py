"""What is seen of one request: when its pieces came, how it ended."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Error(msgspec.Struct):
    message: str = ""
    code: str | int | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: _Error | None = None


class _Refusal(msgspec.Struct):
    error: _Error


_decode_chunk = msgspec.json.Decoder(_Chunk).decode
_decode_refusal = msgspec.json.Decoder(_Refusal).decode


@dataclass(slots=True)
class Sample:
    """Times are seconds on the clock of the run.

    Attributes:
        start: when it was due, also where it was sent later. sent: when it was.
        pieces: when each piece of text came. end: when the response was complete.
        error: why it counts as failed, in a few words; None for an answer.
        finish_reason, prompt_tokens, output_tokens: as the server says; tokens are None where it does not.
    """

    start: float
    sent: float = 0.0
    end: float = 0.0
    pieces: list[float] = field(default_factory=list)
    error: str | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None

    def take(self, data: bytes, now: float) -> None:
        """An event of the stream."""
        if data == b"[DONE]":
            return
        try:
            chunk = _decode_chunk(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            self.error = self.error or "what came is no event"
            return
        for choice in chunk.choices:
            delta = choice.delta
            if choice.text or (delta is not None and (delta.content or delta.reasoning_content)):
                self.pieces.append(now)
            self.finish_reason = choice.finish_reason or self.finish_reason
        if chunk.usage is not None:
            self.prompt_tokens, self.output_tokens = chunk.usage.prompt_tokens, chunk.usage.completion_tokens
        if chunk.error is not None:
            self.error = f"stream: {chunk.error.code or chunk.error.message[:64]}"

    def close(self, status: int, body: bytes, now: float) -> None:
        """The response is complete."""
        self.end = now
        if status != 200:
            self.error = f"{status} {_code(body)}".strip()
        elif self.error is None and self.finish_reason is None:
            self.error = "the stream has no end"

    @property
    def tokens(self) -> int:
        """Of the answer: as the server counts them, otherwise pieces."""
        return len(self.pieces) if self.output_tokens is None else self.output_tokens

    @property
    def ttft(self) -> float | None:
        return self.pieces[0] - self.start if self.pieces else None

    @property
    def e2e(self) -> float:
        return self.end - self.start

    @property
    def tpot(self) -> float | None:
        """Seconds a token after the first."""
        return (self.pieces[-1] - self.pieces[0]) / (self.tokens - 1) if self.pieces and self.tokens > 1 else None


def _code(body: bytes) -> str:
    try:
        error = _decode_refusal(body).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""
    return str(error.code or error.message)[:64]
