"""Log-probabilities in the two shapes that OpenAI has for them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bestiary.api.outputs import Logprob, TokenLogprobs

if TYPE_CHECKING:
    from bestiary.serve.text.tokenizer import Tokenizer

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_LOWEST = -9999.0
"""What a probability of zero is written as: JSON has no infinity, and clients expect a number."""


class Spelling:
    """Tokens as the bytes they add to a text. Cached; one for the server."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        from bestiary.serve.text.detokenizer import decoder_kinds

        self._tokenizer = tokenizer
        self._byte_level = "ByteLevel" in decoder_kinds(tokenizer)
        self._known: dict[int, tuple[str, bytes]] = {}

    def of(self, token_id: int) -> tuple[str, bytes]:
        """The token's text, in which bytes that are no characters are U+FFFD, and its bytes."""
        found = self._known.get(token_id)
        if found is None:
            data = self._tokenizer.token_bytes(token_id) if self._byte_level else self._piece(token_id)
            found = self._known[token_id] = data.decode("utf-8", "replace"), data
        return found

    def text(self, token_ids: Sequence[int]) -> str:
        """What several stand for together, special tokens included."""
        return self._tokenizer.decode(token_ids, skip_special_tokens=False)

    def _piece(self, token_id: int) -> bytes:
        """A token of a SentencePiece vocabulary."""
        text = self._tokenizer.token_text(token_id) or ""
        match = _BYTE.fullmatch(text)
        return bytes([int(match[1], 16)]) if match else text.replace("\u2581", " ").encode()


def finite(value: float) -> float:
    return value if math.isfinite(value) else _LOWEST


def chat_logprobs(
    spelling: Spelling, token_ids: Sequence[int], entries: Sequence[TokenLogprobs], top: int
) -> dict[str, Any]:
    """`choices[i].logprobs` of a chat: each token, and the `top` likeliest in its place."""
    return {
        "content": [
            _described(spelling, token, entry[token])
            | {"top_logprobs": [_described(spelling, each, value) for each, value in likeliest(entry, top)]}
            for token, entry in zip(token_ids, entries, strict=True)
        ],
        "refusal": None,
    }


def likeliest(entry: TokenLogprobs, top: int) -> list[tuple[int, Logprob]]:
    """The `top` best of an entry, which may hold the token itself beside them."""
    return sorted(((each, value) for each, value in entry.items() if value.rank <= top), key=lambda pair: pair[1].rank)


def _described(spelling: Spelling, token: int, value: Logprob) -> dict[str, Any]:
    text, data = spelling.of(token)
    return {"token": text, "logprob": finite(value.logprob), "bytes": list(data)}


class LegacyLogprobs:
    """`choices[i].logprobs` of a completion, which grows; `text_offset` counts characters from where it begins."""

    def __init__(self, spelling: Spelling, top: int) -> None:
        self._spelling, self._top, self._offset = spelling, top, 0

    def piece(self, token_ids: Sequence[int], entries: Sequence[TokenLogprobs | None]) -> dict[str, Any]:
        """The next tokens' part of the document; a prompt's first token has no entry."""
        found: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for token, entry in zip(token_ids, entries, strict=True):
            text = self._spelling.of(token)[0]
            found["tokens"].append(text)
            found["text_offset"].append(self._offset)
            self._offset += len(text)
            found["token_logprobs"].append(None if entry is None else finite(entry[token].logprob))
            found["top_logprobs"].append(None if entry is None else self._named(token, entry))
        return found

    def _named(self, token: int, entry: TokenLogprobs) -> dict[str, float]:
        """By text, the token itself included; of two that look alike the likelier one stays."""
        named: dict[str, float] = {}
        for each, value in [*likeliest(entry, self._top), (token, entry[token])]:
            named.setdefault(self._spelling.of(each)[0], finite(value.logprob))
        return named


def prompt_logprobs(
    entries: Sequence[TokenLogprobs | None] | None,
) -> list[Mapping[str, Any] | None] | None:
    """vLLM's `prompt_logprobs`: for each token of the prompt, by token id."""
    if entries is None:
        return None
    return [
        None
        if entry is None
        else {
            str(token): {"logprob": finite(value.logprob), "rank": value.rank, "decoded_token": value.decoded_token}
            for token, value in entry.items()
        }
        for entry in entries
    ]
