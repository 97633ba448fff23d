"""Small tokenizers of the two kinds that stand for bytes, and walks through what a grammar allows."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from bestiary.api.structured import StructuredOutputGrammar, StructuredOutputsParams, Vocabulary
from bestiary.engine.structured.llguidance import LLGuidanceBackend

BOS, EOS = 0, 1
WORDS = ["th", "the", "er", '":', '",', "12", "},", "tr", "ue"]


def byte_level() -> Tokenizer:
    """All bytes, and a few tokens of several."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [
        ("t", "h"),
        ("th", "e"),
        ("e", "r"),
        ('"', ":"),
        ('"', ","),
        ("1", "2"),
        ("}", ","),
        ("t", "r"),
        ("u", "e"),
    ]
    vocabulary = {token: index for index, token in enumerate(["<s>", "</s>", *letters, *WORDS])}
    made = Tokenizer(models.BPE(vocabulary, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken("<s>"), AddedToken("</s>")])
    return made


def byte_fallback() -> Tokenizer:
    """In the form of SentencePiece: spaces are ``▁``, and bytes without a token of their own have one of the form
    ``<0x0A>``."""
    plain = [chr(code) for code in range(0x21, 0x7F)]
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    vocabulary = {
        token: index for index, token in enumerate(["<s>", "</s>", "<unk>", *fallback, "▁", *plain, "th", "▁t"])
    }
    made = Tokenizer(
        models.BPE(vocabulary, [("t", "h"), ("▁", "t")], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    made.normalizer = normalizers.Replace(" ", "▁")
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    made.add_special_tokens([AddedToken("<s>"), AddedToken("</s>"), AddedToken("<unk>")])
    return made


def vocabulary_of(tokenizer: Tokenizer, *, wider: int = 0, ends: tuple[int, ...] = (EOS,)) -> Vocabulary:
    return Vocabulary(tokenizer.to_str(), tokenizer.get_vocab_size() + wider, ends)


def allowed_ids(grammar: StructuredOutputGrammar, size: int) -> list[int]:
    bits = np.unpackbits(np.frombuffer(grammar.allowed_tokens(), np.uint8), bitorder="little")
    return np.flatnonzero(bits[:size]).tolist()


def walk(grammar: StructuredOutputGrammar, size: int, seed: int, ends: tuple[int, ...] = (EOS,)) -> Iterator[int]:
    """Tokens drawn evenly from what is allowed, without the one that ends the answer."""
    draw = random.Random(seed)
    while True:
        found = allowed_ids(grammar, size)
        token = draw.choice(found) if draw.random() < 0.7 or not set(found) & set(ends) else ends[0]
        if token in ends:
            return
        yield token
        grammar.accept_token(token)


def answer(
    backend: LLGuidanceBackend, tokenizer: Tokenizer, vocabulary: Vocabulary, seed: int, **form: Any
) -> str | None:
    """The text of a random answer; None for one that has not ended after 600 tokens."""
    ids = []
    grammar = backend.validate_grammar(StructuredOutputsParams(**form))
    for token in walk(grammar, vocabulary.vocab_size, seed, vocabulary.eos_token_ids):
        ids.append(token)
        if len(ids) > 600:
            return None
    return tokenizer.decode(ids, skip_special_tokens=False)
