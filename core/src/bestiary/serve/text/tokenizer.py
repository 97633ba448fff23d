"""Text to ids and back.

`Tokenizer` is a thin, typed front of the `tokenizers` library together with what the checkpoint says about its special
tokens and its chat template. It comes from a model directory or from a GGUF file's metadata; both are read as data, and
transformers is imported only for a directory that holds nothing but a SentencePiece file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bestiary.api.errors import ConfigError, RequestError

if TYPE_CHECKING:
    import tokenizers

    from bestiary.api.hook_manager import HookManager


def byte_alphabet() -> dict[str, int]:
    """GPT-2's letters → bytes: printable Latin-1 letters are themselves, the other bytes the letters from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(256)) - set(printable))
    return {chr(byte): byte for byte in printable} | {chr(0x100 + index): byte for index, byte in enumerate(others)}


_BYTE_OF_LETTER = byte_alphabet()
_LONG_TEXT = 10_000
_KEEPING = frozenset({"ByteLevel", "Split", "Digits"})


def _steps(pre_tokenizer: tokenizers.pre_tokenizers.PreTokenizer | None) -> list[dict[str, Any]]:
    """What is done with a text before its parts are looked up, one after another."""
    if pre_tokenizer is None:
        return []
    found: dict[str, Any] = json.loads(pre_tokenizer.__getstate__())
    return list(found["pretokenizers"]) if found["type"] == "Sequence" else [found]


class Tokenizer:
    """One vocabulary, immutable once built, shared by all requests; safe to use from several threads.

    Attributes:
        backend: the `tokenizers.Tokenizer` that does the work.
        bos_token_id: the id a text begins with, or None.
        eos_token_ids: every id that ends an answer, from all the places a checkpoint may say so.
        chat_template: the checkpoint's own template, or None.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        bos_token_id: int | None = None,
        eos_token_id: int | None = None,
        eos_token_ids: Iterable[int] = (),
        chat_template: str | None = None,
    ) -> None:
        backend.no_padding()
        backend.no_truncation()
        self.backend = backend
        self.bos_token_id = bos_token_id
        self.eos_token_id = eos_token_id
        self.eos_token_ids = frozenset(eos_token_ids) | (frozenset() if eos_token_id is None else {eos_token_id})
        self.chat_template = chat_template
        self._token_bytes: dict[int, bytes] = {}

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The ids of `text`. Special tokens that stand in the text are recognised either way; `add_special_tokens`
        decides about those that the checkpoint puts around a text (BOS, EOS)."""
        try:
            text.encode()
        except UnicodeEncodeError as error:  # the library would take it for something that is no text
            raise RequestError(
                "the text holds half of a surrogate pair and is not Unicode", field="prompt", value=text[error.start]
            ) from error
        if len(text) < _LONG_TEXT:
            return self.backend.encode(text, add_special_tokens=add_special_tokens).ids
        # where there may be several texts, the library lets other threads work meanwhile
        return self.backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids

    def fewest_ids(self, text: str) -> int:
        """How many ids `text` has at least, known without encoding it; 0 where this vocabulary does not tell."""
        return len(text.encode(errors="replace")) // self._longest if self._longest else 0

    @cached_property
    def _longest(self) -> int:
        """Bytes of the longest token, where every byte of a text ends up in a token: byte-level BPE. Otherwise 0."""
        from tokenizers.models import BPE

        added = self.backend.get_added_tokens_decoder().values()
        steps = _steps(self.backend.pre_tokenizer)
        keeps = all(step["type"] in _KEEPING and step.get("behavior") != "Removed" for step in steps)
        if (
            not isinstance(self.backend.model, BPE) or self.backend.normalizer is not None or not keeps
            or not any(step["type"] == "ByteLevel" for step in steps)
            or any(each.lstrip or each.rstrip for each in added)
        ):  # fmt: skip
            return 0
        own = (len(token) for token in self.backend.get_vocab(with_added_tokens=False))  # a letter is a byte
        return max((*own, *(len(each.content.encode()) for each in added)), default=0)

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of `ids`, exactly as the library decodes it: no clean-up of spaces; bytes that are not UTF-8 become
        U+FFFD; ids outside the vocabulary (padding of the embedding) have no text."""
        return self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens)

    @cached_property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included. The model's logits may be wider."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """The ids that `skip_special_tokens` leaves out."""
        return frozenset(index for index, token in self.backend.get_added_tokens_decoder().items() if token.special)

    @cached_property
    def special_tokens(self) -> dict[str, int]:
        """Text → id of those."""
        tokens = self.backend.get_added_tokens_decoder()
        return {token.content: index for index, token in tokens.items() if token.special}

    @cached_property
    def as_json(self) -> str:
        """The tokenizer as its library writes it.

        Raises:
            RequestError: a part of it is none of the library's.
        """
        try:
            return self.backend.to_str()
        except Exception as error:  # the library has no narrower one
            raise RequestError(
                f"the form of an answer cannot be enforced with this tokenizer: {error}",
                code="STRUCTURED_OUTPUTS_UNAVAILABLE", field="structured_outputs",
            ) from error  # fmt: skip

    def special_ids_in(self, marks: Iterable[str]) -> tuple[int, ...]:
        """The special tokens that `marks` are made of, wholly or in part."""
        found = tuple(marks)
        return tuple(
            sorted(index for text, index in self.special_tokens.items() if any(text in mark for mark in found))
        )

    def token_text(self, token_id: int) -> str | None:
        """The token as the vocabulary spells it (``"Ġthe"``, ``"▁the"``, ``"<0x0A>"``), or None outside it."""
        return self.backend.id_to_token(token_id)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token of a byte-level vocabulary stands for, empty outside the vocabulary. Cached per token."""
        found = self._token_bytes.get(token_id)
        if found is None:
            text = self.backend.id_to_token(token_id) or ""
            try:
                found = bytes([_BYTE_OF_LETTER[letter] for letter in text])
            except KeyError:  # an added token, spelt as itself
                found = text.encode()
            self._token_bytes[token_id] = found
        return found

    @property
    def bos_token(self) -> str:
        """BOS as text, empty where there is none."""
        return "" if self.bos_token_id is None else self.token_text(self.bos_token_id) or ""

    @property
    def eos_token(self) -> str:
        """EOS as text, empty where there is none."""
        return "" if self.eos_token_id is None else self.token_text(self.eos_token_id) or ""


def load_tokenizer(
    path: Path, *, metadata: Mapping[str, object] | None = None, hooks: HookManager | None = None
) -> Tokenizer:
    """The tokenizer of a model directory, or of a GGUF file's metadata.

    `path` is a directory or a file in it (a GGUF). A `tokenizer.json` in the directory wins over the metadata, because
    it is the checkpoint's own. `hooks` are asked for a tokenizer class that is not among the usual ones. Raises
    `ConfigError` naming the file and the field.
    """
    from bestiary.serve.text.directory_tokenizer import has_tokenizer, load_directory_tokenizer

    directory = path if path.is_dir() else path.parent
    if metadata is None or has_tokenizer(directory, hooks):
        return load_directory_tokenizer(directory, hooks)
    return load_gguf_tokenizer(metadata)


def load_gguf_tokenizer(metadata: Mapping[str, object]) -> Tokenizer:
    """The tokenizer that a GGUF file's `tokenizer.*` metadata describes."""
    from bestiary.serve.text.gguf_tokenizer import GgufVocabulary, build_gguf_tokenizer

    vocabulary = GgufVocabulary(metadata)
    template = metadata.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise ConfigError("not a string", field="tokenizer.chat_template", value=template)
    ends = (vocabulary.token_id(name) for name in ("eos_token_id", "eot_token_id", "eom_token_id"))
    return Tokenizer(
        build_gguf_tokenizer(vocabulary),
        bos_token_id=vocabulary.bos_token_id,
        eos_token_id=vocabulary.eos_token_id,
        eos_token_ids=[end for end in ends if end is not None],
        chat_template=template,
    )
