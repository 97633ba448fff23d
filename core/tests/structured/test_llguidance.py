"""The built-in backend: whatever its masks let through has the form that was asked for. Oracles: `jsonschema`, `re`."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from bestiary.api.errors import RequestError
from bestiary.api.structured import (
    StructuredOutputBackend,
    StructuredOutputGrammar,
    StructuredOutputsParams,
    Vocabulary,
)
from bestiary.engine.arguments import EngineArgs
from bestiary.engine.structured.llguidance import LLGuidanceBackend
from bestiary.serve.text.loading import read_tokenizer

from .vocabularies import EOS, allowed_ids, answer, byte_fallback, byte_level, vocabulary_of

FINITE = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": -3, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", "ß", 'q"'], "type": "string"}, "minItems": 1, "maxItems": 3},
        "more": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/more"}]},
    },
    "required": ["name", "tags"],
    "additionalProperties": False,
    "$defs": {"more": {"type": "object", "properties": {"on": {"type": "boolean"}}, "additionalProperties": False}},
}


def smollm2() -> Tokenizer:
    """A real vocabulary, out of a GGUF file."""
    tokenizer = read_tokenizer(EngineArgs(model="smollm2"))
    assert tokenizer is not None
    return Tokenizer.from_str(tokenizer.as_json)


KINDS: dict[str, tuple[Callable[[], Tokenizer], tuple[int, ...]]] = {
    "byte-level BPE": (byte_level, (EOS,)),
    "byte fallback": (byte_fallback, (EOS,)),
    "GGUF": (smollm2, (2,)),
}


@cache
def made(kind: str, wider: int = 0) -> tuple[LLGuidanceBackend, Tokenizer, Vocabulary]:
    make, ends = KINDS[kind]
    tokenizer = make()
    vocabulary = vocabulary_of(tokenizer, wider=wider, ends=ends)
    return LLGuidanceBackend(vocabulary), tokenizer, vocabulary


def texts(kind: str, count: int, **form: Any) -> list[str]:
    backend, tokenizer, vocabulary = made(kind)
    found = [answer(backend, tokenizer, vocabulary, seed, **form) for seed in range(count)]
    assert None not in found
    return [text for text in found if text is not None]


def test_it_is_what_a_backend_must_be() -> None:
    backend, _, _ = made("byte-level BPE")
    assert isinstance(backend, StructuredOutputBackend)
    assert isinstance(backend.compile_grammar(StructuredOutputsParams(regex="a")), StructuredOutputGrammar)


@pytest.mark.parametrize("kind", KINDS)
def test_answers_satisfy_a_schema(kind: str) -> None:
    found = texts(kind, 4 if kind == "GGUF" else 12, json=FINITE)
    for text in found:
        jsonschema.validate(json.loads(text), FINITE)
    assert len(set(found)) > len(found) // 2
    for text in texts(kind, 3, json=FINITE, disable_any_whitespace=True):
        assert text == json.dumps(json.loads(text), ensure_ascii=False, separators=(",", ":")) or "\\" in text


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "regex", [r"[A-Z][a-z]{1,5}( \d+)?", r"^(ab|cd)*x$", "é|日本語{2}|😀", r"\p{Lu}\.?", r"(?i)yes|no"]
)
def test_answers_match_a_regular_expression(kind: str, regex: str) -> None:
    oracle = re.compile(regex.replace(r"\p{Lu}", "[^\\W\\d_]"))
    for text in texts(kind, 8, regex=regex):
        assert oracle.fullmatch(text), text


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_among_the_choices(kind: str) -> None:
    choice = ["yes", "ye", "no", 'a"b', "a\\b", "new\nline", "é😀", "</s>", "<|im_end|>", "/x/", " lead", "\x00\t"]
    assert set(texts(kind, 60, choice=choice)) >= {"yes", "ye", "no"}
    assert set(texts(kind, 60, choice=choice)) <= set(choice)
    for each in choice:
        assert texts(kind, 1, choice=[each]) == [each]


@pytest.mark.parametrize("kind", KINDS)
def test_answers_follow_a_grammar(kind: str) -> None:
    grammar = """
        start: sum
        sum: product ("+" product)*
        product: NUMBER | "(" sum ")"
        NUMBER: /[1-9][0-9]{0,2}/
    """
    found = texts(kind, 10, grammar=grammar)
    assert all(re.fullmatch(r"[0-9+()]+", text) and text.count("(") == text.count(")") for text in found)
    assert len(set(found)) > 5


def test_whitespace_in_json_ends() -> None:
    backend, tokenizer, vocabulary = made("byte-level BPE")
    grammar = backend.validate_grammar(StructuredOutputsParams(json_object=True))
    grammar.accept_token(tokenizer.token_to_id("{"))
    space, spaces = tokenizer.token_to_id("Ġ"), 0
    while space in allowed_ids(grammar, vocabulary.vocab_size):
        grammar.accept_token(space)
        spaces += 1
    assert 8 < spaces < 100


def test_logits_that_are_wider_than_the_vocabulary() -> None:
    backend, tokenizer, vocabulary = made("byte-level BPE", wider=40)
    assert vocabulary.vocab_size == tokenizer.get_vocab_size() + 40
    grammar = backend.compile_grammar(StructuredOutputsParams(regex=r"(?s:.*)"))
    bits = int.from_bytes(grammar.allowed_tokens(), "little")
    assert len(grammar.allowed_tokens()) * 8 >= vocabulary.vocab_size
    assert bits >> tokenizer.get_vocab_size() == 0
    assert bits >> EOS & 1 and bits & 1 == 0, "the end is allowed, and no other special token"


def test_logits_that_are_narrower_than_the_vocabulary() -> None:
    tokenizer = byte_level()
    vocabulary = vocabulary_of(tokenizer, wider=-5)
    assert answer(LLGuidanceBackend(vocabulary), tokenizer, vocabulary, 1, choice=["the"]) == "the"


def test_several_ends_and_none() -> None:
    tokenizer = byte_level()
    x = tokenizer.token_to_id("x")
    several = LLGuidanceBackend(vocabulary_of(tokenizer, ends=(BOS_ID := 0, EOS))).compile_grammar(
        StructuredOutputsParams(regex="x?")
    )
    assert allowed_ids(several, 300) == [BOS_ID, EOS, x]
    several.accept_token(x)
    assert allowed_ids(several, 300) == [BOS_ID, EOS]
    without = LLGuidanceBackend(vocabulary_of(tokenizer, ends=())).compile_grammar(StructuredOutputsParams(regex="x?"))
    assert allowed_ids(without, 300) == [x]
    without.accept_token(x)
    assert allowed_ids(without, 300) == []


def test_one_answers_grammar_is_not_anothers() -> None:
    backend, _, vocabulary = made("GGUF")
    params = StructuredOutputsParams(regex="(.*a){40}.{30}")
    worn = backend.compile_grammar(params)
    with pytest.raises(RequestError) as caught:
        wear_out(worn, vocabulary)
    assert caught.value.error_code == "GRAMMAR_LIMIT"
    with pytest.raises(RequestError):
        worn.allowed_tokens()
    assert allowed_ids(backend.compile_grammar(params), vocabulary.vocab_size)


def wear_out(grammar: StructuredOutputGrammar, vocabulary: Vocabulary) -> None:
    """Random tokens until it has had enough."""
    draw = random.Random(0)
    for _ in range(2000):
        going_on = set(allowed_ids(grammar, vocabulary.vocab_size)) - set(vocabulary.eos_token_ids)
        grammar.accept_token(draw.choice(sorted(going_on)))


def test_a_token_that_is_not_allowed_is_an_error() -> None:
    backend, tokenizer, _ = made("byte-level BPE")
    grammar = backend.compile_grammar(StructuredOutputsParams(regex="a"))
    with pytest.raises(RequestError):
        grammar.accept_token(tokenizer.token_to_id("b"))


def test_a_tokenizer_whose_tokens_are_no_bytes_is_refused() -> None:
    words = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    for given_text in (words.to_str(), "{}", "no JSON"):
        with pytest.raises(RequestError) as caught:
            LLGuidanceBackend(Vocabulary(given_text, 2, ()))
        assert caught.value.error_code == "STRUCTURED_OUTPUTS_UNAVAILABLE"


@pytest.mark.parametrize(
    ("form", "code", "words"),
    [
        ({"json": {"properties": {"a": {"pattern": "(?=a)"}}}}, "BAD_SCHEMA", "look-around.*/properties/a/pattern"),
        ({"json": {"patternProperties": {"(": {}}}}, "BAD_SCHEMA", r"unclosed group.*/patternProperties/\("),
        ({"json": {"format": "colour"}}, "BAD_SCHEMA", "Unknown format"),
        ({"json": {"oneOf": [{"type": "string"}, {"minLength": 1}]}}, "BAD_SCHEMA", "oneOf"),
        ({"json": {"$ref": "#/$defs/a", "$defs": {"a": {"not": {}}}}}, "BAD_SCHEMA", "cannot be enforced.*/defs/a/not"),
        ({"json": {"type": "integer", "minimum": 5, "maximum": 3}}, "BAD_SCHEMA", "greater than"),
        ({"json": {"enum": [1], "type": "string"}}, "BAD_SCHEMA", "nsatisfiable"),
        ({"regex": "limit("}, "BAD_REGEX", "unclosed group"),
        ({"regex": r"(a)\1"}, "BAD_REGEX", "backreferences"),
        ({"regex": r"\bword\b"}, "BAD_REGEX", "lookarounds"),
        ({"grammar": "start: limit"}, "BAD_GRAMMAR", 'unknown name: "limit"'),
        ({"grammar": "root ::= x"}, "BAD_GRAMMAR", ""),
        ({"grammar": 'a: "x"'}, "BAD_GRAMMAR", "start"),
        (
            {"grammar": 'start: %json {"x-guidance": {"lenient": true}, "uniqueItems": true}'},
            "BAD_GRAMMAR",
            "uniqueItems",
        ),
        ({"grammar": "start: " + "(" * 300 + '"a"' + ")" * 300}, "GRAMMAR_LIMIT", "nested"),
        ({"regex": "(" * 300 + "a" + ")" * 300}, "GRAMMAR_LIMIT", "nest"),
    ],
)
def test_a_complaint_of_the_library_is_one_line_of_ours(form: dict[str, Any], code: str, words: str) -> None:
    backend, _, _ = made("byte-level BPE")
    with pytest.raises(RequestError) as caught:
        backend.validate_grammar(StructuredOutputsParams(**form))
    assert caught.value.error_code == code
    assert re.search(words.replace("/defs", r"/\$defs"), caught.value.message), caught.value.message
    assert len(caught.value.message) < 300 and "\n" not in caught.value.message


names = st.sampled_from(["a", "b", "ä ö", 'q"', "x/y"])
scalars = st.one_of(
    st.builds(lambda n: {"type": "string", "maxLength": n}, st.integers(0, 5)),
    st.builds(lambda n, m: {"type": "string", "minLength": n, "maxLength": n + m}, st.integers(0, 3),
              st.integers(0, 3)),
    st.builds(lambda p: {"type": "string", "pattern": p}, st.sampled_from(["^[ab]{0,4}$", r"^\d\d-\d$", "^(x|yz)$"])),
    st.builds(lambda a, b: {"type": "integer", "minimum": min(a, b), "maximum": max(a, b)}, st.integers(-40, 400),
              st.integers(-40, 400)),
    st.builds(lambda n: {"type": "integer", "multipleOf": n, "minimum": 0, "maximum": 99}, st.integers(1, 9)),
    st.builds(lambda a: {"type": "number", "exclusiveMinimum": a, "maximum": a + 5}, st.integers(-9, 9)),
    st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"const": {"k": [1, "ü"]}}, {"type": ["null", "boolean"]}]),
    st.lists(st.sampled_from([1, "one", None, True, [2], {"z": 0}]), min_size=1, max_size=4).map(lambda v: {"enum": v}),
    st.sampled_from(["ipv4", "ipv6", "uuid"]).map(lambda name: {"type": "string", "format": name}),
)  # fmt: skip


def objects(within: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def build(properties: dict[str, Any], required: list[str], more: Any, patterns: Any, most: int) -> dict[str, Any]:
        named = sorted({*required} & {*properties})
        made = {"type": "object", "properties": properties, "required": named, "additionalProperties": more}
        if patterns is not None:
            made["patternProperties"] = {"^p_": patterns}
        if (more or patterns) and len(named) == len(properties):
            made |= {"minProperties": len(named) + 1, "maxProperties": len(named) + most}
        return made

    return st.builds(
        build, st.dictionaries(names, within, max_size=3), st.lists(names, max_size=3),
        st.one_of(st.just(False), within), st.one_of(st.none(), scalars), st.integers(1, 3),
    )  # fmt: skip


def composed(within: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    arrays = st.builds(lambda i, n, m: {"type": "array", "items": i, "minItems": n, "maxItems": n + m}, within,
                       st.integers(0, 2), st.integers(0, 2))  # fmt: skip
    tuples = st.lists(within, min_size=1, max_size=3).map(
        lambda each: {"type": "array", "prefixItems": each, "items": False, "minItems": len(each)}
    )
    either = st.lists(within, min_size=1, max_size=3).map(lambda each: {"anyOf": each})
    return st.one_of(arrays, tuples, either, objects(within))


schemas = st.recursive(scalars, composed, max_leaves=6)


quick = settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)
cases = given(schema=schemas, referred=st.booleans(), seed=st.integers(0, 2**16))


def whatever_the_schema(schema: dict[str, Any], referred: bool, seed: int) -> None:
    """Walks through the masks, of small schemas of all kinds; those that contradict themselves are refused."""
    if referred:
        schema = {
            "$defs": {"it": schema},
            "type": "array",
            "items": {"$ref": "#/$defs/it"},
            "minItems": 1,
            "maxItems": 2,
        }
    backend, tokenizer, vocabulary = made("byte-level BPE")
    try:
        text = answer(backend, tokenizer, vocabulary, seed, json=schema)
    except RequestError as error:
        if "nsatisfiable" not in error.message:
            raise
        return
    assume(text is not None)
    jsonschema.Draft202012Validator(schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER).validate(
        json.loads(str(text))
    )


test_whatever_the_schema_answers_satisfy_it = quick(cases(whatever_the_schema))
test_the_same_of_many_schemas = pytest.mark.full(settings(quick, max_examples=3000)(cases(whatever_the_schema)))


@pytest.mark.parametrize("kind", ["byte-level BPE", "GGUF"])
def test_masks_are_those_of_the_whole_tokenizer(kind: str) -> None:
    """It is made of less than the library asks for, and without more than masks need."""
    import llguidance

    backend, _, vocabulary = made(kind)
    whole = LLGuidanceBackend(vocabulary)
    whole._tokenizer = llguidance.LLTokenizer(
        vocabulary.tokenizer_json, n_vocab=vocabulary.vocab_size, eos_token=list(vocabulary.eos_token_ids)
    )
    forms: list[dict[str, Any]] = [{"json": FINITE}, {"regex": r"(\w+ ){9}\."}, {"choice": ["the one", "the other"]}]
    for form in forms:
        one, other = (each.compile_grammar(StructuredOutputsParams(**form)) for each in (backend, whole))
        draw = random.Random(7)
        for _ in range(9):
            assert one.allowed_tokens() == other.allowed_tokens()
            ids = sorted({*allowed_ids(one, vocabulary.vocab_size)} - {*vocabulary.eos_token_ids})
            if not ids:
                break
            token = draw.choice(ids)
            one.accept_token(token)
            other.accept_token(token)
