"""A tokenizer from a GGUF file's metadata (`tokenizer.ggml.*`).

Two vocabularies occur: ``gpt2``, byte-level BPE with its merges in the file, and ``llama``, SentencePiece BPE, whose
merges follow from the pieces' scores. Anything else is an error that says so.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

from bestiary.api.errors import ConfigError
from bestiary.serve.text.pre_tokenizers import NORMALISED, WHOLE_WORDS, build_pre_tokenizer

if TYPE_CHECKING:
    import tokenizers

_LOG = logging.getLogger("bestiary.text")
_PREFIX = "tokenizer.ggml."
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4  # of GGUF's token types; 2 is unknown, 5 unused, 6 a raw byte
_SPACE = "\u2581"
_SOURCE_FIX = "put the checkpoint's own tokenizer.json next to the GGUF file"


class GgufVocabulary:
    """The checked `tokenizer.ggml.*` fields. Owns nothing; raises `ConfigError` naming the field that is wrong."""

    def __init__(self, metadata: Mapping[str, object]) -> None:
        self._metadata = metadata
        tokens = self._strings("tokens")
        if not tokens:
            raise ConfigError("the GGUF file holds no vocabulary", field=_PREFIX + "tokens", fix=_SOURCE_FIX)
        self.tokens = [token or f"[EMPTY_{index}]" for index, token in enumerate(tokens)]
        self.ids = {token: index for index, token in enumerate(self.tokens)}
        if len(self.ids) != len(self.tokens):
            twice = next(token for index, token in enumerate(self.tokens) if self.ids[token] != index)
            raise ConfigError("a token stands twice in the vocabulary", field=_PREFIX + "tokens", value=twice)
        types = cast("Sequence[int]", self._per_token("token_type"))
        self.types = [int(kind) for kind in types] or [_NORMAL] * len(self.tokens)
        self.model = self._string("model", "")
        self.named_kind = self._string("pre", "")
        self.bos_token_id = self.token_id("bos_token_id")
        self.eos_token_id = self.token_id("eos_token_id")
        self.unknown_token_id = self.token_id("unknown_token_id")

    def merges(self) -> list[tuple[str, str]]:
        """The file's merges, best first. The separating space is never the first character."""
        pairs = []
        for merge in self._strings("merges"):
            at = merge.find(" ", 1)
            if at < 0:
                raise ConfigError("a merge is not two tokens", field=_PREFIX + "merges", value=merge)
            pairs.append((merge[:at], merge[at + 1 :]))
        return pairs

    def scores(self) -> list[float]:
        scores = cast("Sequence[float]", self._per_token("scores"))
        if not len(scores):
            raise ConfigError("a SentencePiece vocabulary needs scores", field=_PREFIX + "scores", fix=_SOURCE_FIX)
        return [float(score) for score in scores]

    def kind(self) -> str:
        """The pre-tokenizer kind; files older than the field get the customary one, with a warning."""
        if not self.named_kind:
            _LOG.warning("%spre is missing: text is cut the customary way, ids may differ from training", _PREFIX)
        return self.named_kind or "default"

    def token_id(self, name: str) -> int | None:
        value = self._metadata.get(_PREFIX + name)
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < len(self.tokens):
            raise ConfigError(
                "not a token id", field=_PREFIX + name, value=value, limit=f"0 ≤ id < {len(self.tokens)} tokens"
            )
        return value

    def flag(self, name: str, default: bool) -> bool:
        value = self._metadata.get(_PREFIX + name, default)
        if not isinstance(value, bool):
            raise ConfigError("not a truth value", field=_PREFIX + name, value=value)
        return value

    def _string(self, name: str, default: str) -> str:
        value = self._metadata.get(_PREFIX + name, default)
        if not isinstance(value, str):
            raise ConfigError("not a string", field=_PREFIX + name, value=value)
        return value

    def _strings(self, name: str) -> Sequence[str]:
        value = self._sequence(name)
        if not all(isinstance(item, str) for item in value):
            raise ConfigError("not a list of strings", field=_PREFIX + name)
        return cast("Sequence[str]", value)

    def _per_token(self, name: str) -> Sequence[object]:
        values = self._sequence(name)
        if len(values) not in (0, len(self.tokens)):
            raise ConfigError(
                "one entry per token is needed", field=_PREFIX + name, value=len(values), limit=len(self.tokens)
            )
        if not all(hasattr(value, "__float__") for value in values):
            raise ConfigError("not a list of numbers", field=_PREFIX + name)
        return values

    def _sequence(self, name: str) -> Sequence[object]:
        value = self._metadata.get(_PREFIX + name, ())
        if isinstance(value, str | bytes) or not hasattr(value, "__len__") or not hasattr(value, "__getitem__"):
            raise ConfigError("not a list", field=_PREFIX + name, value=value)
        return cast("Sequence[object]", value)


def build_gguf_tokenizer(vocabulary: GgufVocabulary) -> tokenizers.Tokenizer:
    """The `tokenizers.Tokenizer` of a vocabulary, with its control and user-defined tokens added."""
    builders = {"gpt2": _byte_level, "llama": _sentencepiece}
    if vocabulary.model not in builders:
        raise ConfigError(
            f"unknown vocabulary kind {vocabulary.model[:64]!r}",
            field=_PREFIX + "model",
            limit="one of " + ", ".join(builders),
            fix=_SOURCE_FIX,
        )
    try:
        tokenizer = builders[vocabulary.model](vocabulary)
    except ConfigError:
        raise
    except Exception as error:  # the library raises bare Exception for a merge whose tokens do not exist
        raise ConfigError(f"the vocabulary is inconsistent: {error}", field=_PREFIX + "merges") from error
    _add_tokens(tokenizer, vocabulary)
    _add_template(tokenizer, vocabulary)
    return tokenizer


def _byte_level(vocabulary: GgufVocabulary) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer, decoders, normalizers
    from tokenizers.models import BPE

    kind = vocabulary.kind()
    pre_tokenizer = build_pre_tokenizer(kind)
    model = BPE(vocab=vocabulary.ids, merges=vocabulary.merges(), ignore_merges=kind in WHOLE_WORDS)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer
    if kind in NORMALISED:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(vocabulary: GgufVocabulary) -> tokenizers.Tokenizer:
    """SentencePiece BPE: spaces become ▁, a ▁ goes before every stretch of text, unknown characters become bytes."""
    from tokenizers import Tokenizer, decoders, normalizers
    from tokenizers.models import BPE

    unknown = None if vocabulary.unknown_token_id is None else vocabulary.tokens[vocabulary.unknown_token_id]
    merges = vocabulary.merges() or merges_from_scores(vocabulary)
    tokenizer = Tokenizer(
        BPE(vocab=vocabulary.ids, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    prefix = vocabulary.flag("add_space_prefix", True)
    spaces = normalizers.Replace(" ", _SPACE)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), spaces] if prefix else [spaces])
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return tokenizer


def merges_from_scores(vocabulary: GgufVocabulary) -> list[tuple[str, str]]:
    """SentencePiece's rule as BPE merges: of all neighbours that form a piece, those with the best score join first.

    Only normal pieces take part: control and user-defined ones are found in the text beforehand, bytes never merge.
    """
    ids = {token: index for token, index in vocabulary.ids.items() if vocabulary.types[index] == _NORMAL}
    scores = vocabulary.scores()
    ranked: list[tuple[float, int, int, str, str]] = []
    for token, index in ids.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in ids and right in ids:
                ranked.append((-scores[index], index, cut, left, right))
    ranked.sort()
    return [(left, right) for _, _, _, left, right in ranked]


def _add_tokens(tokenizer: tokenizers.Tokenizer, vocabulary: GgufVocabulary) -> None:
    from tokenizers import AddedToken

    def of_type(wanted: int, special: bool) -> list[AddedToken]:
        found = (token for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True) if kind == wanted)
        return [AddedToken(token, normalized=False, special=special) for token in found]

    tokenizer.add_special_tokens(of_type(_CONTROL, special=True))
    tokenizer.add_tokens(of_type(_USER_DEFINED, special=False))


def _add_template(tokenizer: tokenizers.Tokenizer, vocabulary: GgufVocabulary) -> None:
    """What `add_special_tokens=True` puts around a text; where the file is silent, what its kind does by custom."""
    from tokenizers import processors

    customary = vocabulary.model == "llama" or vocabulary.named_kind in WHOLE_WORDS
    before = _template_token(vocabulary, vocabulary.bos_token_id, vocabulary.flag("add_bos_token", customary))
    after = _template_token(vocabulary, vocabulary.eos_token_id, vocabulary.flag("add_eos_token", False))
    if before or after:
        single = [*(token for token, _ in before), "$A", *(token for token, _ in after)]
        tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=[*before, *after])


def _template_token(vocabulary: GgufVocabulary, index: int | None, wanted: bool) -> list[tuple[str, int]]:
    return [(vocabulary.tokens[index], index)] if wanted and index is not None else []
