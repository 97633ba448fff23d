"""Oracle: a full decode of prompt and answer by the tokenizers library."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders

from bestiary.api.errors import ConfigError, RequestError
from bestiary.serve.text.detokenizer import Detokenizer
from bestiary.serve.text.tokenizer import Tokenizer

from .corpus import FAMILIES, TEXTS, byte_level, sentencepiece


@pytest.fixture(scope="module", params=FAMILIES)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return Tokenizer(FAMILIES[request.param]())


def _byte_run(tokenizer: Tokenizer, ids: Iterable[int], skip: bool) -> list[int]:
    """The bytes of the run of <0xNN> tokens that `ids` begins with."""
    run = []
    for token_id in ids:
        token = tokenizer.backend.id_to_token(token_id)
        if token is None or (skip and token_id in tokenizer.special_ids):
            continue
        if not token.startswith("<0x"):
            break
        run.append(int(token[3:5], 16))
    return run


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def expected(tokenizer: Tokenizer, prompt: list[int], answer: list[int], skip: bool) -> str:
    """The answer's share of `decode(prompt + answer)`, from full decodes alone."""
    base, full = (tokenizer.decode(ids, skip) for ids in (prompt, prompt + answer))
    before = bytes(reversed(_byte_run(tokenizer, reversed(prompt), skip)))
    after = before + bytes(_byte_run(tokenizer, answer, skip))
    if _is_utf8(before) == _is_utf8(after):
        if full.startswith(base):
            return full[len(base) :]
        assert not before  # byte level: the answer completed the character that the prompt left in half
        assert base.endswith("\ufffd")
        return full[len(base) - 1 :]
    if _is_utf8(before):  # characters before, broken by the answer: one U+FFFD per byte now
        stable = max(0, len(base) - len(before.decode()))  # a space at the very beginning has no text
        return full[stable + len(before) :]
    return full[len(base) - len(before) + len(before.decode(errors="ignore")) :]


def pieces(detokenizer: Detokenizer, ids: list[int], rng: random.Random) -> list[str]:
    """The deltas for `ids`, pushed in random chunks."""
    deltas, at = [], 0
    while at < len(ids):
        size = rng.choice([1, 1, 1, 2, 5])
        deltas.append(detokenizer.push(ids[at : at + size]).text)
        at += size
    return [*deltas, detokenizer.finish()]


def random_ids(tokenizer: Tokenizer, rng: random.Random) -> list[int]:
    """Any ids at all, mostly bytes, or the ids of real text cut anywhere."""
    size = rng.randrange(0, 24)
    kind = rng.randrange(3)
    if kind == 0:
        return [rng.randrange(tokenizer.vocab_size + 5) for _ in range(size)]
    if kind == 1:
        return [rng.randrange(5, min(300, tokenizer.vocab_size)) for _ in range(size)]
    ids = tokenizer.encode(rng.choice(TEXTS))
    cut = rng.randrange(len(ids) + 1)
    return ids[cut : cut + size]


def check_random(tokenizer: Tokenizer, seed: int, rounds: int) -> None:
    rng = random.Random(seed)
    for _ in range(rounds):
        prompt, answer, skip = random_ids(tokenizer, rng), random_ids(tokenizer, rng), rng.random() < 0.5
        detokenizer = Detokenizer(tokenizer, prompt, skip_special_tokens=skip)
        deltas = pieces(detokenizer, answer, rng)
        assert "".join(deltas) == expected(tokenizer, prompt, answer, skip), (prompt, answer, skip)
        assert detokenizer.text == "".join(deltas)
        assert detokenizer.finish() == ""


def test_sum_of_deltas_is_the_full_decode(tokenizer: Tokenizer) -> None:
    check_random(tokenizer, seed=0, rounds=300)


@pytest.mark.full
def test_sum_of_deltas_is_the_full_decode_often(tokenizer: Tokenizer) -> None:
    check_random(tokenizer, seed=1, rounds=10_000)


def test_real_text_without_a_prompt(tokenizer: Tokenizer) -> None:
    rng = random.Random(2)
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert "".join(pieces(Detokenizer(tokenizer), ids, rng)) == tokenizer.decode(ids)


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
def test_a_character_is_never_split(make: Callable[[], object]) -> None:
    tokenizer = Tokenizer(make())  # type: ignore[arg-type]
    ids = tokenizer.encode("€ 😀 日本")
    deltas = [Detokenizer(tokenizer).push(ids[:end]).text for end in range(len(ids) + 1)]
    assert len(ids) > 6
    assert all("\ufffd" not in delta for delta in deltas)


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
def test_a_prompt_that_ends_in_half_a_character_is_not_repeated(make: Callable[[], object]) -> None:
    tokenizer = Tokenizer(make())  # type: ignore[arg-type]
    ids = tokenizer.encode("many words before 😀 after")
    cut = next(index for index in range(len(ids)) if tokenizer.decode(ids[:index]).endswith("\ufffd"))
    detokenizer = Detokenizer(tokenizer, ids[:cut])
    assert detokenizer.push(ids[cut:]).text + detokenizer.finish() == "😀 after"
    plain = tokenizer.encode("then", add_special_tokens=False)
    other = Detokenizer(tokenizer, ids[:cut])
    assert "\ufffd" not in other.push(plain).text + other.finish()


def test_bytes_that_never_complete_are_flushed_as_replacement() -> None:
    tokenizer = Tokenizer(byte_level())
    ids = tokenizer.encode("a 😀")[:-1]
    detokenizer = Detokenizer(tokenizer)
    assert detokenizer.push(ids).text == "a "
    assert detokenizer.finish() == "\ufffd"


@pytest.fixture(scope="module")
def letters() -> Tokenizer:
    return Tokenizer(byte_level())


def first_completed(text: str, stops: list[str]) -> tuple[int, str] | None:
    """End and stop string, found by brute force over prefixes."""
    for end in range(len(text) + 1):
        matching = [stop for stop in stops if text[:end].endswith(stop)]
        if matching:
            return end, max(matching, key=len)
    return None


@settings(max_examples=150, deadline=None)
@given(
    text=st.text(alphabet="abc€", max_size=14),
    stops=st.lists(st.text(alphabet="abc€", min_size=1, max_size=4), min_size=1, max_size=3),
    include=st.booleans(),
    seed=st.integers(0, 99),
)
def test_stop_strings(letters: Tokenizer, text: str, stops: list[str], include: bool, seed: int) -> None:
    detokenizer = Detokenizer(letters, stop=stops, include_stop_str_in_output=include)
    emitted = "".join(pieces(detokenizer, letters.encode(text), random.Random(seed)))
    found = first_completed(text, stops)
    if found is None:
        assert (emitted, detokenizer.stopped) == (text, None)
    else:
        end, stop = found
        assert (emitted, detokenizer.stopped) == (text[: end if include else end - len(stop)], stop)


def test_a_stop_string_before_min_tokens_ends_nothing(letters: Tokenizer) -> None:
    detokenizer = Detokenizer(letters, stop=["bc"], min_tokens=4)
    ids = [letters.encode(letter)[0] for letter in "abcabc"]
    deltas = [detokenizer.push((token_id,)) for token_id in ids]
    assert "".join(delta.text for delta in deltas) == "abca"
    assert [delta.stop for delta in deltas] == [None] * 5 + ["bc"]


def test_only_what_may_become_a_stop_string_is_held_back(letters: Tokenizer) -> None:
    detokenizer = Detokenizer(letters, stop=["xyz", "yq"])
    assert detokenizer.push(letters.encode("aaxy")) == ("aa", None)
    assert detokenizer.push(letters.encode("y")) == ("xy", None)
    assert detokenizer.push(letters.encode("qb")) == ("", "yq")
    assert detokenizer.push(letters.encode("more")) == ("", "yq")
    assert (detokenizer.text, detokenizer.finish()) == ("aaxy", "")


@pytest.mark.parametrize("stop", [[""], ["a", ""], "abc", [3]])
def test_bad_stop_strings(letters: Tokenizer, stop: list[str]) -> None:
    with pytest.raises(RequestError, match="non-empty"):
        Detokenizer(letters, stop=stop)


def test_a_decoder_without_incremental_form_is_refused() -> None:
    backend = byte_level()
    backend.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip("x", 0, 1)])
    with pytest.raises(ConfigError, match="decoder"):
        Detokenizer(Tokenizer(backend))


class Counting:
    """A library tokenizer that counts the ids it is asked to decode."""

    def __init__(self, backend: object) -> None:
        self.backend = backend
        self.decoded = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self.backend, name)

    def decode(self, ids: list[int], **options: object) -> str:
        self.decoded += len(ids)
        return self.backend.decode(ids, **options)  # type: ignore[attr-defined, no-any-return]


def test_cost_per_token_does_not_grow(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the answer, a token costs at most the decoding of a few ids."""
    counting = Counting(tokenizer.backend)
    monkeypatch.setattr(tokenizer, "backend", counting)
    rng = random.Random(3)
    detokenizer = Detokenizer(tokenizer, stop=["never to be found", "\n\n\n\n"])
    for number in range(1, 6001):
        detokenizer.push((rng.randrange(5, tokenizer.vocab_size),))
        assert counting.decoded <= 6 * number + 20


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
def test_special_tokens_that_are_marks_are_shown(make) -> None:  # type: ignore[no-untyped-def]
    tokenizer = Tokenizer(make())
    start, end = tokenizer.special_ids_in(["<|im_start|>call", "a<|im_end|>"])
    assert tokenizer.special_ids_in(["<tool_call>"]) == ()
    ids = [tokenizer.backend.token_to_id("</s>"), start, *tokenizer.encode("x", add_special_tokens=False), end]
    detokenizer = Detokenizer(tokenizer, shown_token_ids=(start, end))
    text = detokenizer.push(ids).text + detokenizer.finish()
    assert text.replace(" ", "") == "<|im_start|>x<|im_end|>"
    assert Detokenizer(tokenizer).push(ids).text.strip() == "x"
