"""A file of ranks, as the tiktoken library reads it, as a `tokenizers.Tokenizer`.

A line is a token's bytes in base64, a space, and its rank, which is also its id. Within a word tiktoken joins, over and
over, the two neighbours that together are the token of the lowest rank. As merges that is every way to cut every token
into two tokens, ordered by the rank of the whole: of several cuts of one token at most one can ever come up, since how
the bytes between two boundaries have been joined depends on those bytes alone. A word that is itself a token is taken
as it is.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import TYPE_CHECKING

from bestiary.api.errors import ConfigError
from bestiary.api.hooks import TiktokenVocabulary
from bestiary.serve.text.files import read_text
from bestiary.serve.text.tokenizer import byte_alphabet

if TYPE_CHECKING:
    import tokenizers

MAX_TOKEN_BYTES = 512
"""The longest token known, a run of spaces, has 128. Cutting tokens takes time in the square of this."""


def load_tiktoken(vocabulary: TiktokenVocabulary, directory: Path) -> tokenizers.Tokenizer:
    """The tokenizer of a directory that holds ``vocabulary.file``; `ConfigError` names the line that is wrong."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
    from tokenizers.models import BPE

    ranks = read_ranks(directory / vocabulary.file)
    _check_specials(vocabulary, ranks)
    letters = {byte: letter for letter, byte in byte_alphabet().items()}
    spelt = {token: "".join([letters[byte] for byte in token]) for token in ranks}
    merges = [(spelt[left], spelt[right]) for left, right in cuts(ranks)]
    backend = Tokenizer(BPE(vocab={spelt[token]: rank for token, rank in ranks.items()}, merges=merges,
                            ignore_merges=True))  # fmt: skip
    if vocabulary.normalization is not None:
        backend.normalizer = {"NFC": normalizers.NFC, "NFKC": normalizers.NFKC}[vocabulary.normalization]()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(vocabulary.pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(each, normalized=False) for each in vocabulary.special_tokens])
    return backend


def read_ranks(path: Path) -> dict[bytes, int]:
    """Token → rank, by rank: each from 0 on once, every single byte among the tokens."""
    tokens: dict[int, bytes] = {}
    ranks: dict[bytes, int] = {}
    for number, line in enumerate((read_text(path) or "").splitlines(), 1):
        if not line:
            continue
        token, rank = _entry(path.name, number, line)
        if rank in tokens or token in ranks:
            what = f"rank {rank}" if rank in tokens else "a token"
            raise ConfigError(f"{path.name} line {number}: {what} for the second time", field=path.name, value=line)
        tokens[rank], ranks[token] = token, rank
    gap = next((rank for rank in range(len(tokens)) if rank not in tokens), None)
    if gap is not None:
        raise ConfigError(
            f"{path.name} has no token of rank {gap}", field=path.name, limit="ranks from 0 on, without gaps"
        )
    absent = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if absent:
        raise ConfigError(
            f"{path.name} lacks {len(absent)} of the 256 bytes", field=path.name, value=absent[:8], limit="all of them"
        )
    return {tokens[rank]: rank for rank in range(len(tokens))}


def _entry(file: str, number: int, line: str) -> tuple[bytes, int]:
    encoded, _, rank = line.partition(" ")
    try:
        token = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ConfigError(f"{file} line {number}: no base64: {error}", field=file, value=line) from error
    if not 0 < len(token) <= MAX_TOKEN_BYTES:
        rule = f"1 to {MAX_TOKEN_BYTES} bytes"
        raise ConfigError(f"{file} line {number}: no token", field=file, value=len(token), limit=rule)
    if not (rank.isascii() and rank.isdecimal() and len(rank) < 10):
        raise ConfigError(f"{file} line {number}: no rank", field=file, value=rank, limit="a whole number from 0 on")
    return token, int(rank)


def cuts(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Every way to cut a token into two tokens, in the order of `ranks`."""
    return [
        (token[:at], token[at:])
        for token in ranks
        for at in range(1, len(token))
        if token[:at] in ranks and token[at:] in ranks
    ]


def _check_specials(vocabulary: TiktokenVocabulary, ranks: dict[bytes, int]) -> None:
    for token in vocabulary.special_tokens:
        if token.encode() in ranks:
            raise ConfigError(f"{vocabulary.file} holds the special token {token!r} as an ordinary one",
                              field=vocabulary.file, value=token)  # fmt: skip
    unknown = {vocabulary.eos_token, *vocabulary.stop_tokens} - set(vocabulary.special_tokens)
    if unknown:
        raise ConfigError(
            f"{', '.join(sorted(unknown))} end an answer and are no special tokens of {vocabulary.file}",
            field=vocabulary.file, limit="tokens among special_tokens",
        )  # fmt: skip
