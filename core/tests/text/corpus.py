"""Tokenizers made on the spot, and text that tokenizers stumble over."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXTS = [
    "",
    " ",
    "Hello world",
    "  two leading spaces, trailing  ",
    "tabs\t\tand\nnew\r\nlines\n\n\n  indented",
    "def f(x: int) -> str:\n    return f'{x!r}'  # 100%\n\n\nclass A:\n\tpass\n",
    "0 1 12 123 1234 12345 3.14159 1,000,000 x  1 y   23 ½ Ⅷ ٣٤٥",
    "It's we'll I'D they'RE don't 'quoted' “typographic” ‘quotes’",
    "naïve café Zürich — façade, e\u0301 combining, ﬁ ligature",
    "日本語のテキスト、中文文本。한국어 텍스트",
    "مرحبا بالعالم שלום עולם ‏mixed‎",
    "हिन्दी বাংলা ไทย ქართული",
    "😀 👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪",
    "control \x00\x01\x1b[0m\x7f\u200b\u200d\ufeff end",
    "a" * 300,
    " " * 70 + "x",
    "<s> in text </s> and <|im_start|>user\nhi<|im_end|><|endoftext|>",
    "https://example.org/a?b=c&d=%20#e  mail@example.org",
    "\U0001d504\U00010330\U0002070e rare planes \ufffd",
    "don't_stop snake_case camelCase SCREAMING $#@!%^&*()[]{}<>",
]
SPECIALS = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
_TRAINING = [text for text in TEXTS if text] * 3 + ["the quick brown fox jumps over the lazy dog"] * 20


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_TRAINING, trainer)
    return tokenizer


def sentencepiece(*, prepend: bool = True) -> Tokenizer:
    """BPE with byte fallback, in Llama 2's form."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    spaces = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces] if prepend else [spaces])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prepend else steps)
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    plain = [text for text in _TRAINING if text.isascii()]
    trainer = trainers.BpeTrainer(vocab_size=560, special_tokens=SPECIALS + byte_tokens, show_progress=False)
    tokenizer.train_from_iterator(plain, trainer)
    return _only_specials(tokenizer)


def metaspace() -> Tokenizer:
    """Unigram with Metaspace on both sides."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=400, special_tokens=SPECIALS, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(_TRAINING, trainer)
    return tokenizer


def word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=500, special_tokens=SPECIALS, show_progress=False)
    tokenizer.train_from_iterator(_TRAINING, trainer)
    return tokenizer


def undecorated() -> Tokenizer:
    """No decoder at all: the library joins tokens by spaces."""
    tokenizer = word_piece()
    tokenizer.decoder = None
    return tokenizer


def with_bos(tokenizer: Tokenizer) -> Tokenizer:
    bos = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(single=["<s>", "$A"], special_tokens=[("<s>", bos)])
    return tokenizer


def _only_specials(tokenizer: Tokenizer) -> Tokenizer:
    """The trainer makes byte tokens special, checkpoints do not: rebuild with the five real ones only."""
    import json

    data = json.loads(tokenizer.to_str())
    data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] in SPECIALS]
    return Tokenizer.from_str(json.dumps(data))


FAMILIES = {
    "byte_level": byte_level,
    "sentencepiece": sentencepiece,
    "sentencepiece_no_prefix": lambda: sentencepiece(prepend=False),
    "metaspace": metaspace,
    "word_piece": word_piece,
    "undecorated": undecorated,
}
