"""Ids to text as they arrive, and stop strings.

The sum of all deltas equals what a full decode of prompt and answer says about the answer, whatever the ids are, and a
character is never split. Three things are held back, none of them longer than needed: bytes that do not yet form a
character, a run of byte tokens (its meaning depends on its end, see `_ByteRuns`), and a suffix that may become a stop
string.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from bestiary.api.errors import ConfigError, RequestError
from bestiary.serve.text.tokenizer import Tokenizer


class Delta(NamedTuple):
    """Text that became certain, and the stop string that ended the answer with it, if one did."""

    text: str
    stop: str | None


class Detokenizer:
    """The text of one answer. Owned by one request; not safe for two threads.

    Args:
        prompt_ids: what precedes the answer. Its text is never emitted; it decides how the answer begins (a space or
            none, the second half of a character).
        shown_token_ids: special tokens that are not skipped with the others.
        stop: strings that end the answer. The one that completes first wins, of several that complete together the
            longest; how the text was cut into tokens makes no difference.
        include_stop_str_in_output: whether the stop string itself is emitted.
        min_tokens: a stop string that is complete before as many tokens came ends nothing.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int] = (),
        *,
        skip_special_tokens: bool = True,
        shown_token_ids: Iterable[int] = (),
        stop: Sequence[str] = (),
        include_stop_str_in_output: bool = False,
        min_tokens: int = 0,
    ) -> None:
        self._due = min_tokens
        skipped = tokenizer.special_ids - set(shown_token_ids) if skip_special_tokens else frozenset()
        self._pieces = _pieces(tokenizer, prompt_ids, skipped)
        self._stops = _StopStrings(stop, include_stop_str_in_output)
        self._emitted: list[str] = []
        self._finished = False

    @property
    def text(self) -> str:
        """Everything emitted so far."""
        if len(self._emitted) > 1:
            self._emitted = ["".join(self._emitted)]
        return self._emitted[0] if self._emitted else ""

    @property
    def stopped(self) -> str | None:
        """The stop string that ended the answer."""
        return self._stops.found

    def push(self, ids: Iterable[int]) -> Delta:
        """The text that the next ids make certain. After a stop string nothing further is emitted."""
        text = ""
        for token_id in ids:
            self._due -= 1
            text += self._stops.feed(self._pieces.feed(token_id), search=self._due <= 0)
        return Delta(self._emit(text), self._stops.found)

    def finish(self) -> str:
        """What was still held back; bytes that never became a character are U+FFFD, as in a full decode."""
        if self._finished:
            return ""
        self._finished = True
        return self._emit(self._stops.feed(self._pieces.flush()) + self._stops.flush())

    def _emit(self, text: str) -> str:
        if text:
            self._emitted.append(text)
        return text


class _Pieces(Protocol):
    """Ids in, settled text out; what is not settled stays inside until `flush`."""

    def feed(self, token_id: int) -> str: ...

    def flush(self) -> str: ...


def _pieces(tokenizer: Tokenizer, prompt_ids: Sequence[int], skipped: frozenset[int]) -> _Pieces:
    kinds = set(decoder_kinds(tokenizer))
    if "ByteLevel" not in kinds:
        return _ByteRuns(tokenizer, prompt_ids, skipped, fallback="ByteFallback" in kinds)
    if kinds - {"ByteLevel", "Fuse"}:
        raise ConfigError(
            "no incremental form of this decoder", field="tokenizer.json: decoder", value=", ".join(sorted(kinds))
        )
    return _ByteLevel(tokenizer, prompt_ids, skipped)


def decoder_kinds(tokenizer: Tokenizer) -> Iterator[str]:
    """The names of the steps that the tokenizer's decoder consists of."""
    decoder = tokenizer.backend.decoder
    pending = [] if decoder is None else [json.loads(decoder.__getstate__())]
    while pending:
        node = pending.pop()
        if node["type"] == "Sequence":
            pending += node["decoders"]
        else:
            yield node["type"]


class _ByteLevel:
    """A token is bytes, whatever its neighbours: an incremental UTF-8 decoder gives exactly the full decode."""

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int], skipped: frozenset[int]) -> None:
        self._bytes = tokenizer.token_bytes
        self._skipped = skipped
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._half = self._read_prompt(prompt_ids)

    def feed(self, token_id: int) -> str:
        if token_id in self._skipped:
            return ""
        return self._own(self._decoder.decode(self._bytes(token_id)))

    def flush(self) -> str:
        return self._own(self._decoder.decode(b"", final=True))

    def _own(self, text: str) -> str:
        """The text without the U+FFFD of a character that the prompt left in half and the answer did not complete:
        the prompt's own text ends in it already."""
        if not self._half or not text:
            return text
        half, self._half = self._half, ""
        return text.removeprefix(half)

    def _read_prompt(self, prompt_ids: Sequence[int]) -> str:
        """Leaves the prompt's last, incomplete character in the decoder and returns how the prompt's text shows it."""
        tail = b""
        for token_id in reversed(prompt_ids):
            if len(tail) >= 4:  # no character is longer
                break
            if token_id not in self._skipped:
                tail = self._bytes(token_id) + tail
        self._decoder.decode(tail[-4:])
        return self._decoder.getstate()[0].decode(errors="replace")


class _ByteRuns:
    """Every other decoder: a token's text depends at most on the token before it, except in a run of byte tokens.

    The library's ByteFallback turns a run (``<0xE2><0x82><0xAC>``) into text as a whole: if all of it is UTF-8 the
    characters, otherwise one U+FFFD per byte. So a run is held back until another token, or the end, closes it. All
    text comes from the library itself, as the difference of two decodes of a few tokens: with and without the context.
    """

    def __init__(
        self, tokenizer: Tokenizer, prompt_ids: Sequence[int], skipped: frozenset[int], *, fallback: bool
    ) -> None:
        self._tokenizer = tokenizer
        self._skipped = skipped
        self._fallback = fallback
        self._before: list[int] = []  # the last token that is no byte, the context; empty at the very beginning
        self._before_text = ""
        self._run: list[int] = []  # byte tokens since then
        self._run_bytes = bytearray()
        self._prompt_bytes = 0  # how many of the run belong to the prompt
        self._read_prompt(prompt_ids)

    def feed(self, token_id: int) -> str:
        token = self._tokenizer.token_text(token_id)
        if not token or token_id in self._skipped:
            return ""
        byte = _byte_of(token) if self._fallback else None
        if byte is not None:
            self._run.append(token_id)
            self._run_bytes.append(byte)
            return ""
        run = self._close_run()
        text = self._decode([*self._before, token_id])[len(self._before_text) :]
        self._set_context(token_id)
        return run + text

    def flush(self) -> str:
        return self._close_run()

    def _close_run(self) -> str:
        """The answer's share of the run: characters whose last byte is the answer's, or its own bytes' U+FFFD."""
        if not self._run:
            return ""
        text = self._decode([*self._before, *self._run])[len(self._before_text) :]
        try:
            characters = len(self._run_bytes.decode())
            prompt_characters = len(self._run_bytes[: self._prompt_bytes].decode(errors="ignore"))
        except UnicodeDecodeError:
            characters, prompt_characters = len(self._run), self._prompt_bytes
        self._set_context(self._run[-1])
        self._run.clear()
        self._run_bytes.clear()
        self._prompt_bytes = 0
        return text[max(0, len(text) - characters + prompt_characters) :]

    def _set_context(self, token_id: int) -> None:
        self._before = [token_id]
        self._before_text = self._decode(self._before)

    def _read_prompt(self, prompt_ids: Sequence[int]) -> None:
        """Walks back over the prompt's last run to the token before it."""
        start = len(prompt_ids)
        while start > 0:
            start -= 1
            token = self._tokenizer.token_text(prompt_ids[start])
            if (
                token
                and prompt_ids[start] not in self._skipped
                and not (self._fallback and _byte_of(token) is not None)
            ):
                self._set_context(prompt_ids[start])
                start += 1
                break
        for token_id in prompt_ids[start:]:
            self.feed(token_id)
        self._prompt_bytes = len(self._run)

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.backend.decode(ids, skip_special_tokens=False)


def _byte_of(token: str) -> int | None:
    """The byte of ``<0xNN>``."""
    if len(token) != 6 or not token.startswith("<0x") or not token.endswith(">"):
        return None
    try:
        return bytes.fromhex(token[3:5])[0]
    except ValueError:
        return None


class _StopStrings:
    """Text in, text out, cut at the first stop string to complete; holds back what could be the beginning of one."""

    def __init__(self, stops: Sequence[str], include: bool) -> None:
        if isinstance(stops, str) or not all(isinstance(stop, str) and stop for stop in stops):
            raise RequestError("stop strings are non-empty strings", field="stop", value=stops)
        self.found: str | None = None
        self._stops = sorted(set(stops), key=len, reverse=True)
        self._include = include
        self._held = ""

    def feed(self, text: str, *, search: bool = True) -> str:
        if self.found is not None:
            return ""
        if not self._stops:
            return text
        text = self._held + text
        ends = [(text.find(stop) + len(stop), -len(stop), stop) for stop in self._stops if stop in text]
        if ends and search:
            end, _, self.found = min(ends)
            self._held = ""
            return text[: end if self._include else end - len(self.found)]
        cut = self._beginning_of_a_stop(text)
        self._held = text[cut:]
        return text[:cut]

    def _beginning_of_a_stop(self, text: str) -> int:
        """Where the longest end of `text` begins that a stop string may continue; the length where there is none."""
        cut = len(text)
        for stop in self._stops:
            at = text.find(stop[0], max(0, len(text) - len(stop) + 1))
            while 0 <= at < cut:
                if stop.startswith(text[at:]):
                    cut = at
                else:
                    at = text.find(stop[0], at + 1)
        return cut

    def flush(self) -> str:
        held, self._held = self._held, ""
        return held
