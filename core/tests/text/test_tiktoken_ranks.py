"""Files of ranks: the oracles are the rule itself, written plainly, and the tiktoken library where it is installed."""

from __future__ import annotations

import base64
import json
import random
import unicodedata
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bestiary.api.discovery import scan
from bestiary.api.errors import BrokenPlugin, ConfigError
from bestiary.api.hook_manager import HookManager
from bestiary.api.hooks import TiktokenVocabulary
from bestiary.serve.text.tiktoken_ranks import load_tiktoken
from bestiary.serve.text.tokenizer import Tokenizer, load_tokenizer
from bestiary.testing.fake_site import Site

from .corpus import TEXTS

WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
BYTES = [bytes([byte]) for byte in range(256)]
PLAIN = TiktokenVocabulary(
    file="x.tiktoken", pattern=WORDS, special_tokens=("<|end|>", "<|turn|>"), eos_token="<|end|>", normalization="NFC"
)


def write(directory: Path, tokens: list[bytes]) -> Path:
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens)]
    path = directory / PLAIN.file
    path.write_text("".join(lines))
    return path


def by_the_rule(ranks: dict[bytes, int], word: bytes) -> list[int]:
    """A word that is a token, else: join the neighbours that make the token of the lowest rank, the first of equals."""
    if word in ranks:
        return [ranks[word]]
    parts = [word[i : i + 1] for i in range(len(word))]
    while True:
        pairs = [(ranks[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ranks]
        if not pairs:
            return [ranks[part] for part in parts]
        _, at = min(pairs)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


def trained(size: int = 400) -> list[bytes]:
    """Bytes, and tokens made by joining pairs that stand side by side in a text, in an order of chance."""
    chance, tokens = random.Random(1), list(BYTES)
    pieces = [[bytes([byte]) for byte in word.encode()] for text in TEXTS for word in text.split(" ")]
    while len(tokens) < size:
        pairs = sorted({(a, b) for piece in pieces for a, b in pairwise(piece)})
        if not pairs:
            break
        a, b = chance.choice(pairs)
        if a + b not in tokens:
            tokens.append(a + b)
        for piece in pieces:
            for at in range(len(piece) - 1, 0, -1):
                if (piece[at - 1], piece[at]) == (a, b):
                    piece[at - 1 : at + 1] = [a + b]
    return tokens


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.text("ab", min_size=2, max_size=7), unique=True, max_size=14),
    st.lists(st.text("ab", min_size=1, max_size=24), min_size=1, max_size=8),
    st.booleans(),
)
def test_any_ranks_at_all_mean_what_the_rule_says(tmp_path_factory, tokens, words, bytes_last) -> None:  # type: ignore[no-untyped-def]
    """Also ranks that no training would give: a long token before its parts, parts that cannot be reached."""
    longer = [token.encode() for token in tokens]
    order = longer + BYTES if bytes_last else BYTES + longer
    directory = tmp_path_factory.mktemp("ranks")
    write(directory, order)
    backend = load_tiktoken(PLAIN, directory)
    ranks = {token: rank for rank, token in enumerate(order)}
    for word in words:
        assert backend.encode(word).ids == by_the_rule(ranks, word.encode())


def test_texts_equal_the_tiktoken_library(tmp_path: Path) -> None:
    tiktoken = pytest.importorskip("tiktoken")
    tokens = trained()
    write(tmp_path, tokens)
    ours = Tokenizer(load_tiktoken(PLAIN, tmp_path))
    specials = {token: len(tokens) + index for index, token in enumerate(PLAIN.special_tokens)}
    ranks = {token: rank for rank, token in enumerate(tokens)}
    theirs = tiktoken.Encoding("ranks", pat_str=WORDS, mergeable_ranks=ranks, special_tokens=specials)
    for text in (*TEXTS, "one<|turn|>two<|end|>", "e\u0301 \u00e9"):
        ids = theirs.encode(unicodedata.normalize("NFC", text), allowed_special="all")
        assert ours.encode(text) == ids
        assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids)
    assert ours.vocab_size == theirs.n_vocab
    assert [ours.token_bytes(index) for index in range(len(tokens))] == tokens


GOOD = [f"{base64.b64encode(token).decode()} {rank}" for rank, token in enumerate(BYTES)]


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ([], "lacks 256 of the 256 bytes"),
        (GOOD[:-1], "lacks 1 of the 256 bytes"),
        ([*GOOD, "YWI= 257"], "no token of rank 256"),
        ([*GOOD, "YWI= 7"], "line 257: rank 7 for the second time"),
        ([*GOOD, f"{GOOD[9].split()[0]} 256"], "line 257: a token for the second time"),
        ([*GOOD, "YW=I 256"], "line 257: no base64"),
        ([*GOOD, "YWI 256"], "line 257: no base64"),
        ([*GOOD, "YÄI= 256"], "line 257: no base64"),
        ([*GOOD, " 256"], "line 257: no token"),
        ([*GOOD, f"{base64.b64encode(b'a' * 513).decode()} 256"], "line 257: no token"),
        ([*GOOD, "YWI="], "line 257: no rank"),
        ([*GOOD, "YWI= -1"], "line 257: no rank"),
        ([*GOOD, "YWI= 256 1"], "line 257: no rank"),
        ([*GOOD, "YWI= ²"], "line 257: no rank"),
        ([*GOOD, f"YWI= {'9' * 5000}"], "line 257: no rank"),
        ([*GOOD, "PHxlbmR8Pg== 256"], "the special token '<|end|>' as an ordinary one"),
    ],
)
def test_a_wrong_file_names_the_line(lines: list[str], complaint: str, tmp_path: Path) -> None:
    (tmp_path / PLAIN.file).write_text("\n".join(lines))
    with pytest.raises(ConfigError) as caught:
        load_tiktoken(PLAIN, tmp_path)
    assert complaint in caught.value.message
    assert caught.value.field == PLAIN.file


def test_a_file_of_ranks_is_bounded(tmp_path: Path) -> None:
    with write(tmp_path, BYTES).open("r+b") as stream:
        stream.truncate(17 * 2**20)
    with pytest.raises(ConfigError, match="too large"):
        load_tiktoken(PLAIN, tmp_path)


HOOKS = f"""
from bestiary.api.hooks import TiktokenVocabulary, hookimpl

@hookimpl
def tokenizers():
    return {{
        "OddTokenizer": TiktokenVocabulary(
            file="x.tiktoken", pattern={WORDS!r}, special_tokens=("<|end|>", "<|turn|>"), eos_token="<|end|>",
            stop_tokens=("<|turn|>",), chat_template="{{{{ messages[0]['content'] }}}}",
        ),
        "NoTokenizer": 3,
        "LostTokenizer": TiktokenVocabulary(
            file="x.tiktoken", pattern=".", special_tokens=(), eos_token="<|end|>",
        ),
    }}
"""


@pytest.fixture
def hooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HookManager:
    site = Site(tmp_path / "site")
    site.add("odd-words", hooks={"any": "odd_words"}, source=HOOKS)
    monkeypatch.syspath_prepend(str(site.root))
    return HookManager(scan([str(site.root)])).load()


def test_a_package_says_how_a_class_is_read(hooks: HookManager, tmp_path: Path) -> None:
    write(tmp_path, BYTES)
    config = tmp_path / "tokenizer_config.json"
    config.write_text('{"tokenizer_class": "OddTokenizer", "auto_map": {"AutoTokenizer": ["odd.OddTokenizer", null]}}')
    with pytest.raises(ConfigError, match="no tokenizer") as caught:
        load_tokenizer(tmp_path)
    assert caught.value.value == "OddTokenizer"
    found = load_tokenizer(tmp_path, hooks=hooks)
    assert found.encode("ab<|turn|>") == [97, 98, 257]
    assert (found.bos_token_id, found.eos_token_id, found.eos_token_ids) == (None, 256, {256, 257})
    assert found.chat_template == "{{ messages[0]['content'] }}"
    config.write_text(json.dumps({"tokenizer_class": "OddTokenizer", "chat_template": "own", "eos_token": "<|turn|>"}))
    found = load_tokenizer(tmp_path, hooks=hooks)
    assert (found.eos_token_id, found.chat_template) == (257, "own")


def test_tokenizer_json_wins(hooks: HookManager, tmp_path: Path) -> None:
    write(tmp_path, [*BYTES, b"ab"])
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "OddTokenizer"}')
    assert load_tokenizer(tmp_path, hooks=hooks).encode("ab") == [256]
    write(tmp_path, BYTES)
    load_tiktoken(PLAIN, tmp_path).save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path, hooks=hooks).encode("ab") == [97, 98]


def test_wrong_offers_are_the_packages_fault(hooks: HookManager, tmp_path: Path) -> None:
    write(tmp_path, BYTES)
    config = tmp_path / "tokenizer_config.json"
    config.write_text('{"tokenizer_class": "NoTokenizer"}')
    with pytest.raises(BrokenPlugin, match="no TiktokenVocabulary"):
        load_tokenizer(tmp_path, hooks=hooks)
    config.write_text('{"tokenizer_class": "LostTokenizer"}')
    with pytest.raises(ConfigError, match="no special tokens"):
        load_tokenizer(tmp_path, hooks=hooks)
