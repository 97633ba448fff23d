"""What a tool grammar lets pass is calls: random walks through its mask, read by the family's parser."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import jsonschema
import pytest
from llguidance import LLMatcher, LLTokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from bestiary.api.errors import ModelError, RequestError
from bestiary.api.hooks import TextDelta
from bestiary.api.structured import StructuredOutputsParams
from bestiary.api.structured import Vocabulary as EngineVocabulary
from bestiary.api.text_formats import ToolFormat
from bestiary.engine.arguments import EngineArgs
from bestiary.engine.structured.llguidance import LLGuidanceBackend
from bestiary.serve.text.enforceable import enforceable
from bestiary.serve.text.parsers.answer import parse_text
from bestiary.serve.text.parsers.families import HERMES, REASONING_FORMATS, TOOL_FORMATS
from bestiary.serve.text.parsers.formats import AnswerFormats, begins_inside
from bestiary.serve.text.tool_grammar import can_free_calls, forced_calls, free_calls
from bestiary.serve.text.tools import Tool, check_tools

CLOSED = {"type": "object", "additionalProperties": False}
WEATHER = Tool(
    "get_weather",
    parameters={
        **CLOSED,
        "properties": {
            "town": {"enum": ["Zürich", "B\"e'r\n\\n"]},
            "days": {"type": "integer", "minimum": 1, "maximum": 99},
            "units": {"type": ["array", "null"], "items": {"enum": ["C", 7, None, True]}, "maxItems": 2},
            "deep": {"$ref": "#/$defs/point"},
        },
        "required": ["days"],
        "$defs": {"point": {**CLOSED, "properties": {"x": {"type": "boolean"}}, "required": ["x"]}},
    },
)
SAY = Tool("say-it", parameters={**CLOSED, "properties": {"text": {"type": "string"}}, "required": ["text"]})
NOW = Tool("now")
TOOLS = (WEATHER, SAY, NOW)
MARKS = ("<|tool_call|>", "[TOOL_CALLS]", "<｜tool▁sep｜>", "<|message|>", "<|channel|>", "</think>", "<tool_call>")
FORMATS = sorted(TOOL_FORMATS)


class Vocabulary:
    """A tokenizer, and what llguidance makes of it."""

    def __init__(self, backend: Tokenizer, eos: str, special: tuple[str, ...] = ()) -> None:
        self.backend = backend
        self.special = {text: backend.token_to_id(text) for text in special}
        self.eos = backend.token_to_id(eos)
        self.llguidance = LLTokenizer(backend.to_str(), eos_token=self.eos)

    def matcher(self, grammar: str) -> LLMatcher:
        failed, messages = LLMatcher.validate_grammar_with_warnings(
            LLMatcher.grammar_from_lark(grammar), self.llguidance
        )
        assert not failed, (messages, grammar)
        return LLMatcher(self.llguidance, LLMatcher.grammar_from_lark(grammar))

    def walk(self, matcher: LLMatcher, draw: random.Random, marks: tuple[str, ...] = (), steps: int = 3000) -> str:
        """A text that the grammar lets pass, to its end. Free text would go on for ever; `marks`, tried now and then
        where all of one fits, end it."""
        endings = [self.backend.encode(mark, add_special_tokens=False).ids for mark in marks]
        ids: list[int] = []
        for _ in range(steps):
            allowed = [number for number, bias in enumerate(matcher.compute_logit_bias()) if bias]
            assert allowed and not matcher.is_error(), (matcher.get_error(), self.text(ids))
            if self.eos in allowed and (len(allowed) == 1 or draw.random() < 0.5):
                return self.text(ids)
            chosen = [draw.choice([number for number in allowed if number != self.eos])]
            if endings and len(allowed) > 100 and draw.random() < 0.3:
                ending = draw.choice(endings)
                chosen = ending if matcher.validate_tokens(ending) == len(ending) else chosen
            assert matcher.consume_tokens(chosen)
            ids += chosen
        raise AssertionError(f"no end: {self.text(ids)}")

    def text(self, ids: list[int]) -> str:
        return str(self.backend.decode(ids, skip_special_tokens=False))


def byte_vocabulary(special: tuple[str, ...] = ()) -> Vocabulary:
    """Bytes, some words that lie across the borders of what grammars are made of, and special tokens."""
    words = ['{"', '":', '"}', "}}", '", "', "ĊĊ", ">Ċ", "</", '"a', "1}", "):", "[g"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate([*letters, *words])}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(text, special=True) for text in ("<eos>", *special)])
    return Vocabulary(backend, "<eos>", special)


@pytest.fixture(scope="module")
def plain() -> Vocabulary:
    return byte_vocabulary()


@pytest.fixture(scope="module")
def marked() -> Vocabulary:
    return byte_vocabulary(MARKS)


@pytest.fixture(scope="module")
def smollm2() -> Vocabulary:
    from bestiary.serve.text.loading import read_tokenizer

    try:
        tokenizer = read_tokenizer(EngineArgs(model="smollm2"))
    except ModelError:
        pytest.skip("the model smollm2 is not installed")
    assert tokenizer is not None
    return Vocabulary(tokenizer.backend, tokenizer.eos_token)


def checked(delta: TextDelta, content: str = "", tools: tuple[Tool, ...] = TOOLS) -> int:
    """That all of an answer is calls of these tools, with arguments as their schemas say; how many."""
    assert delta.tool_calls
    assert delta.content == content
    for call in delta.tool_calls:
        (tool,) = (each for each in tools if each.name == call.name)
        jsonschema.validate(json.loads(call.arguments), tool.parameters)
    return len(delta.tool_calls)


def marks_of(formats: AnswerFormats) -> tuple[str, ...]:
    return ('"', *(mark.strip() for mark in formats.marks()))


@pytest.mark.parametrize("family", FORMATS)
@pytest.mark.parametrize("special", [False, True], ids=["text", "special tokens"])
def test_forced_calls_are_calls(family: str, special: bool, plain: Vocabulary, marked: Vocabulary) -> None:
    form, vocabulary, draw = TOOL_FORMATS[family], marked if special else plain, random.Random(family)
    formats, counts = AnswerFormats(form), set()
    for number in range(60):
        matcher = vocabulary.matcher(forced_calls(form, TOOLS, special=vocabulary.special))
        text = vocabulary.walk(matcher, draw, marks_of(formats))
        counts.add(checked(parse_text(formats.parser("", TOOLS, forced=True), text)))
        if number >= 3 and max(counts) > 1:
            break
    assert max(counts) > 1


@pytest.mark.parametrize("family", FORMATS)
def test_a_named_call_is_one_call(family: str, marked: Vocabulary) -> None:
    form, draw = TOOL_FORMATS[family], random.Random(family)
    for tool in TOOLS:
        grammar = forced_calls(form, [tool], several=False, special=marked.special)
        text = marked.walk(marked.matcher(grammar), draw, marks_of(AnswerFormats(form)))
        assert checked(parse_text(AnswerFormats(form).parser("", [tool], forced=True), text), tools=(tool,)) == 1


@pytest.mark.parametrize("family", sorted(REASONING_FORMATS))
@pytest.mark.parametrize("started", [False, True], ids=["", "started"])
def test_a_thought_may_come_first(family: str, started: bool, plain: Vocabulary, marked: Vocabulary) -> None:
    reasoning = REASONING_FORMATS[family]
    tools = TOOL_FORMATS["openai"] if reasoning.anywhere else HERMES
    formats, draw = AnswerFormats(tools, reasoning), random.Random(family)
    prompt = reasoning.opening[0] if started else ""
    thoughts = 0
    for number in range(8):
        vocabulary = (plain, marked)[number % 2]
        grammar = forced_calls(
            tools,
            (WEATHER, NOW),
            special=vocabulary.special,
            reasoning=reasoning,
            started=begins_inside(reasoning, prompt),
        )
        text = vocabulary.walk(vocabulary.matcher(grammar), draw, marks_of(formats))
        delta = parse_text(formats.parser(prompt, (WEATHER, NOW), forced=True), text)
        checked(delta)
        thoughts += bool(delta.reasoning)
    assert thoughts


@pytest.mark.parametrize("family", [name for name in FORMATS if can_free_calls(TOOL_FORMATS[name], None)])
def test_text_is_free_until_it_opens_a_call(family: str, marked: Vocabulary) -> None:
    form, draw = TOOL_FORMATS[family], random.Random(family)
    formats = AnswerFormats(form)
    strict = replace(WEATHER, strict=True)
    tools = (strict, replace(NOW, strict=True))
    grammar = free_calls(form, tools, special=marked.special)
    assert grammar is not None
    for ending in ("", 'Some text, {"a": <b>'):
        matcher = marked.matcher(grammar)
        ids = marked.backend.encode(f"{ending}{form.opening[0]}", add_special_tokens=False).ids
        assert matcher.consume_tokens(ids)
        while matcher.compute_logit_bias().count(b"\xc8") <= 1:  # layout, which is no choice
            (forced,) = (number for number, bias in enumerate(matcher.compute_logit_bias()) if bias)
            matcher.consume_token(forced)
            ids.append(forced)
        text = marked.text(ids) + marked.walk(matcher, draw, marks_of(formats))
        delta = parse_text(formats.parser("", tools), text)
        assert delta.tool_calls[0].name in ("get_weather", "now")
        if delta.tool_calls[0].name == "get_weather":
            jsonschema.validate(json.loads(delta.tool_calls[0].arguments), strict.parameters)
    quiet = marked.matcher(grammar)
    assert quiet.consume_tokens(marked.backend.encode("No call at all, [] {}", add_special_tokens=False).ids)
    assert quiet.is_accepting()


def test_where_nothing_is_to_be_enforced_there_is_no_grammar() -> None:
    assert free_calls(HERMES, TOOLS) is None
    strict = [replace(NOW, strict=True)]
    assert free_calls(HERMES, strict) is not None
    assert free_calls(TOOL_FORMATS["pythonic"], strict) is None
    assert free_calls(TOOL_FORMATS["openai"], strict, reasoning=REASONING_FORMATS["openai_gptoss"]) is None
    assert AnswerFormats(HERMES).keeps_strict and AnswerFormats(HERMES, REASONING_FORMATS["think"]).keeps_strict
    assert not AnswerFormats(TOOL_FORMATS["llama3_json"]).keeps_strict
    assert not AnswerFormats().keeps_strict


def test_a_tool_that_is_not_strict_stays_free_beside_one_that_is(plain: Vocabulary) -> None:
    tools = [replace(NOW, strict=True), Tool("f", parameters={"properties": {"a": {"type": "integer"}}})]
    for family, text in {
        "hermes": '<tool_call>\n{"name": "f", "arguments": {"b": []}}\n</tool_call>',
        "qwen3_coder": "<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>",
    }.items():
        ids = plain.backend.encode(f"So {text}", add_special_tokens=False).ids
        assert plain.matcher(str(free_calls(TOOL_FORMATS[family], tools))).validate_tokens(ids) == len(ids)


def one(schema: dict[str, Any], name: str = "x", **more: Any) -> Tool:
    return Tool(
        "f", parameters={"type": "object", "properties": {name: schema}, "required": [name], **more}, strict=True
    )


TAGS, PYTHON = TOOL_FORMATS["qwen3_coder"], TOOL_FORMATS["pythonic"]


@pytest.mark.parametrize(
    ("form", "tool", "value"),
    [
        (TAGS, one({"type": "string", "pattern": "a+"}), "x"),
        (TAGS, one({"type": "string", "maxLength": 3}), "x"),
        (TAGS, one({"type": ["string", "integer"]}), "x"),
        (TAGS, one({"enum": ["a</parameter>"]}), "x"),
        (TAGS, one({"type": "string", "enum": [1]}), "x"),
        (TAGS, one({"$ref": "#/properties/x/items", "items": {"type": "integer"}}), "#/properties/x/items"),
        (PYTHON, one({"type": "string"}, "no-keyword"), "no-keyword"),
        (PYTHON, one({"$ref": "#/properties/x/items", "items": {"type": "integer"}}), "#/properties/x/items"),
    ],
)
def test_what_a_format_cannot_keep_to_is_refused(form: ToolFormat, tool: Tool, value: str) -> None:
    with pytest.raises(RequestError) as caught:
        forced_calls(form, [tool])
    assert (caught.value.error_code, caught.value.field, caught.value.value) == ("BAD_SCHEMA", "tools", value)


@pytest.mark.parametrize(
    ("schema", "written"),
    [
        ({"type": "string"}, '"a\\n \\"b\\" </p>"'),
        ({"enum": ["", "a</b", "ä"]}, '"a</b"'),
        ({"enum": ["", "a</b", "ä"]}, '""'),
        ({"const": "c"}, '"c"'),
        ({"type": "string", "enum": ["a", "a</b", "ab", 3]}, '"a</b"'),
        ({"type": "string", "enum": ["a", "a</b", "ab", 3]}, '"a"'),
        ({"type": "string", "enum": ["a", "b"], "const": "b"}, '"b"'),
        ({"type": ["string", "null"]}, "null"),
        ({"anyOf": [{"type": "string"}, {"type": "integer"}]}, "5"),
        ({"type": "integer"}, "5"),
        ({"type": "number"}, "5.5"),
        ({"type": "boolean"}, "true"),
        ({"type": "array", "items": {"type": "string"}}, '["a", "b"]'),
        ({"type": "object", "properties": {"a": {"type": "string"}}}, '{"a": "b"}'),
        ({}, '{"a": [1]}'),
        ({"$ref": "#/$defs/s"}, '"by name"'),
        (True, "[]"),
    ],
)
@pytest.mark.parametrize("family", ["hermes", "qwen3_coder", "glm45", "pythonic", "deepseek_v31"])
def test_a_value_goes_through_grammar_and_parser(family: str, schema: Any, written: str, plain: Vocabulary) -> None:
    """A call written as the family does passes the grammar to its end, and the parser gives the value back."""
    tool = replace(one(schema, **{"$defs": {"s": {"type": "string"}}}), strict=False)
    value = json.loads(written)
    bare = value if isinstance(value, str) else written
    texts = {
        "hermes": f'<tool_call>\n{{"name": "f", "arguments": {{"x": {written}}}}}\n</tool_call>',
        "deepseek_v31": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>"
        f'{{"x": {written}}}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        "qwen3_coder": f"<tool_call>\n<function=f>\n<parameter=x>\n{bare}\n</parameter>\n</function>\n</tool_call>",
        "glm45": f"<tool_call>f\n<arg_key>x</arg_key>\n<arg_value>{bare}</arg_value>\n</tool_call>",
        "pythonic": f"[f(x={written})]",
    }
    matcher = plain.matcher(forced_calls(TOOL_FORMATS[family], [tool]))
    ids = plain.backend.encode(texts[family], add_special_tokens=False).ids
    assert matcher.validate_tokens(ids) == len(ids)
    assert matcher.consume_tokens(ids)
    assert matcher.is_accepting()
    delta = parse_text(AnswerFormats(TOOL_FORMATS[family]).parser("", [tool], forced=True), texts[family])
    assert json.loads(delta.tool_calls[0].arguments) == {"x": value}


def test_objects_hold_what_their_schemas_list(plain: Vocabulary) -> None:
    def passes(parameters: dict[str, Any], arguments: str) -> bool:
        matcher = plain.matcher(forced_calls(TOOL_FORMATS["mistral"], [Tool("f", parameters=parameters)]))
        text = f'[TOOL_CALLS][{{"name": "f", "arguments": {arguments}}}]'
        ids = plain.backend.encode(text, add_special_tokens=False).ids
        return bool(matcher.validate_tokens(ids) == len(ids))

    named = {"type": "object", "properties": {"a": {"type": "integer"}}}
    assert passes(named, '{"a": 1}')
    assert not passes(named, '{"a": 1, "b": 2}')
    assert passes({**named, "additionalProperties": {"type": "integer"}}, '{"a": 1, "b": 2}')
    assert passes({"type": "object"}, '{"b": 2}')


@pytest.fixture(scope="module")
def engine(smollm2: Vocabulary) -> LLGuidanceBackend:
    return LLGuidanceBackend(
        EngineVocabulary(
            tokenizer_json=smollm2.backend.to_str(),
            vocab_size=smollm2.backend.get_vocab_size(),
            eos_token_ids=(smollm2.eos,),
        )
    )


@pytest.mark.parametrize("family", ["hermes", "qwen3_coder", "deepseek_v31", "pythonic"])
def test_grammars_keep_within_the_limits_of_the_engine(family: str, engine: LLGuidanceBackend) -> None:
    properties = {f"p{each}": {"type": kind, "title": "T"} for each, kind in enumerate(["string", "integer", "array"])}
    many = [Tool(f"tool_{each}", parameters={"type": "object", "properties": properties}) for each in range(128)]
    grammar = forced_calls(TOOL_FORMATS[family], many, reasoning=REASONING_FORMATS["think"])
    engine.validate_grammar(StructuredOutputsParams(grammar=grammar))


UNUSUAL = {
    "title": "Args",
    "properties": {
        "title": {
            "description": "d",
            "type": "array",
            "uniqueItems": True,
            "items": {"not": {"const": 1}, "type": "integer"},
        },
        "format": {"type": "string", "format": "int32", "pattern": "^(?!x).*$", "x-guidance": {"lenient": True}},
        "choice": {"oneOf": [{"type": "integer"}, {"type": "number", "example": 1}]},
    },
    "dependentRequired": {"title": ["format"]},
    "patternProperties": {"(?=a)b": {}},
}


@pytest.mark.parametrize("family", ["hermes", "qwen3_coder", "pythonic"])
def test_a_tool_that_is_not_strict_is_held_to_what_can_be_enforced(family: str, engine: LLGuidanceBackend) -> None:
    (tool,) = check_tools([{"type": "function", "function": {"name": "f", "parameters": UNUSUAL}}])
    engine.validate_grammar(StructuredOutputsParams(grammar=forced_calls(TOOL_FORMATS[family], [tool])))
    assert enforceable(tool) == {
        "properties": {
            "title": {"type": "array", "items": {"type": "integer"}},
            "format": {"type": "string"},
            "choice": {"anyOf": [{"type": "integer"}, {"type": "number"}]},
        }
    }


def test_a_strict_tool_that_cannot_be_enforced_is_refused() -> None:
    (tool,) = check_tools([{"type": "function", "function": {"name": "f", "strict": True, "parameters": UNUSUAL}}])
    with pytest.raises(RequestError, match=r"f is strict, and .* cannot be enforced") as caught:
        forced_calls(HERMES, [tool])
    assert caught.value.error_code == "BAD_SCHEMA"
    assert str(caught.value.field).startswith("tools[0].function.parameters#/")
    with pytest.raises(RequestError):
        free_calls(HERMES, [tool])


def test_a_real_vocabulary(smollm2: Vocabulary) -> None:
    """Tokens that lie across the borders of marks, names and values."""
    draw = random.Random(7)
    for form in (HERMES, TOOL_FORMATS["deepseek_v3"], TAGS, PYTHON):
        formats = AnswerFormats(form)
        text = smollm2.walk(smollm2.matcher(forced_calls(form, TOOLS)), draw, marks_of(formats))
        checked(parse_text(formats.parser("", TOOLS, forced=True), text))
