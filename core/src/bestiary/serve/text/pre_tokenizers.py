"""The pre-tokenizers that a GGUF file names in `tokenizer.ggml.pre`, as a table.

A byte-level BPE vocabulary was learned on text cut into words in a certain way, and only the same cut gives the same
ids. GGUF stores the cut as a name. Each name stands here for the steps that the checkpoints' own `tokenizer.json`
lists: a pattern isolates every match and leaves the text between matches as pieces of its own, the next step works
within the pieces, and the last one maps bytes to the printable alphabet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bestiary.api.errors import ConfigError

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import PreTokenizer

# Building blocks. Contractions come in two forms: exactly lower case (GPT-2) and case-blind (its successors).
_TAIL = r"\s+(?!\S)|\s+"
_LINES = r"\s*[\r\n]+"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_PUNCTUATION = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
_CASED_TAIL = rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_LINES}|{_TAIL}"

_GPT2 = rf"'s|'t|'re|'ve|'m|'ll|'d| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|{_TAIL}"
_LLAMA3 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}|{_PUNCTUATION}|{_LINES}|{_TAIL}"
_QWEN2 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}|{_PUNCTUATION}|{_LINES}|{_TAIL}"
_QWEN35 = (
    rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*"
    rf"|{_LINES}|{_TAIL}"
)
_TEKKEN = rf"{_CASED[0]}|{_CASED[1]}|\p{{N}}|{_CASED_TAIL}"
_GPT4O = rf"{_CASED[0]}{_CONTRACTION}?|{_CASED[1]}{_CONTRACTION}?|\p{{N}}{{1,3}}|{_CASED_TAIL}"
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"
_SEED_CODER = rf"{_CONTRACTION}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_LINES}|{_TAIL}"
_BAILING = (
    rf"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{{L}}\p{{N}}]?+\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]++[\r\n]*"
    rf"|\s*[\r\n]|{_TAIL}"
)
_EXAONE_MOE = (
    rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]?|\s*[\r\n]|{_TAIL}"
)
_DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_LINES}|{_TAIL}"
)
_HAN, _KANA = "\u4e00-\u9fa5", "\u3040-\u309f\u30a0-\u30ff"
_HAN_HANGUL = f"[{_HAN}\u0800-\u4e00\uac00-\ud7ff]+"

_DIGITS_GPT2 = (r"\p{N}", _GPT2)
_SPLITS: dict[tuple[str, ...], tuple[str, ...]] = {
    (
        "gpt-2",
        "phi-2",
        "mpt",
        "olmo",
        "jais",
        "trillion",
        "granite-docling",
        "gigachat",
        "a.x-4.0",
        "mellum",
        "exaone4",
    ): (_GPT2,),
    ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"): _DIGITS_GPT2,
    ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"): (_LLAMA3,),
    ("dbrx", "smaug-bpe", "glm4", "chatglm-bpe"): (_LLAMA3,),
    ("qwen2", "deepseek-r1-qwen", "stablelm2", "hunyuan", "solar-open", "megrez", "kormo", "grok-2"): (_QWEN2,),
    ("qwen35",): (_QWEN35,),
    ("tekken",): (_TEKKEN,),
    ("gpt-4o", "llama4", "kanana2", "minimax-m2"): (_GPT4O,),
    ("bloom", "gpt3-finnish", "poro-chat"): (_BLOOM,),
    ("viking",): (_BLOOM, r"\p{N}"),
    ("falcon",): (r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]"),
    ("deepseek-coder",): (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN_HANGUL, r"\p{N}"),
    ("deepseek-v3", "hunyuan-dense", "joyai-llm"): (r"\p{N}{1,3}", f"[{_HAN}{_KANA}]+", _DEEPSEEK3),
    ("bailingmoe", "bailingmoe2", "llada-moe"): (_BAILING,),
    ("seed-coder",): (_SEED_CODER,),
    ("exaone-moe",): (_EXAONE_MOE,),
    # What readers of the format do for a file that names no kind: not any model's own cut, only the custom.
    ("default",): (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
}
PATTERNS: dict[str, tuple[str, ...]] = {name: steps for names, steps in _SPLITS.items() for name in names}
"""Kind → patterns, applied one after the other."""

WHOLE_WORDS = frozenset(
    {"llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "tekken"}
)
"""Kinds whose checkpoints take a word that is itself a token as that token, whatever the merges say, and begin with BOS
unless the file denies it."""

NORMALISED = frozenset({"qwen2", "qwen35"})
"""Kinds whose checkpoints bring text into Unicode's NFC first."""


def build_pre_tokenizer(kind: str, field: str = "tokenizer.ggml.pre") -> PreTokenizer:
    """The pre-tokenizer of one kind; an unknown kind is a `ConfigError`: a wrong cut gives wrong ids silently."""
    from tokenizers import Regex, pre_tokenizers

    if kind not in PATTERNS:
        raise ConfigError(
            f"unknown pre-tokenizer kind {kind[:64]!r}",
            field=field,
            limit="one of " + ", ".join(sorted(PATTERNS)),
            fix="put the checkpoint's own tokenizer.json next to the GGUF file",
        )
    steps: list[PreTokenizer] = [pre_tokenizers.Split(Regex(step), behavior="isolated") for step in PATTERNS[kind]]
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    return pre_tokenizers.Sequence(steps)
