"""Reasoning and tool calls: whole, and in pieces."""

from __future__ import annotations

import json

import pytest

from bestiary.serve.openai.schemas.chat import ChatCompletion
from bestiary.serve.openai.schemas.responses import ResponseDocument
from bestiary.serve.text.parsers.families import HERMES, THINK, TOOL_FORMATS
from bestiary.serve.text.parsers.formats import AnswerFormats

from .conftest import events
from .fake import Script

CHAT, ANSWER = "/v1/chat/completions", "/v1/responses"
FORMATS = AnswerFormats(HERMES, THINK, shows_tools=True)
HI = {"messages": [{"role": "user", "content": "Hi"}]}
FUNCTION = {"name": "f", "parameters": {"type": "object"}}
TOOLS = {"tools": [{"type": "function", "function": FUNCTION}]}
CALLS = [("f", {"a": "ü 🦁"}), ("f", {})]
WRITTEN = "".join(
    f'\n<tool_call>\n{{"name": "{name}", "arguments": {json.dumps(given, ensure_ascii=False)}}}\n</tool_call>'
    for name, given in CALLS
)
TEXT = f"<think>\nLet me see.\n</think>\n\nI look it up.{WRITTEN}"


@pytest.fixture(autouse=True)
def script(llm):
    llm.script = Script(answer=TEXT)


def calls_of(message):
    return [(each["function"]["name"], json.loads(each["function"]["arguments"])) for each in message["tool_calls"]]


def test_a_whole_answer(ask):
    document = ask("POST", CHAT, HI | TOOLS, formats=FORMATS).json()
    ChatCompletion.model_validate(document)
    (choice,) = document["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["reasoning_content"].strip() == "Let me see."
    assert choice["message"]["content"].strip() == "I look it up."
    assert calls_of(choice["message"]) == CALLS
    assert len({each["id"] for each in choice["message"]["tool_calls"]}) == 2


@pytest.mark.parametrize("options", [{}, {"logprobs": True}, {"n": 2}], ids=str)
def test_a_stream_adds_up_to_it(ask, options):
    whole = ask("POST", CHAT, HI | TOOLS | options, formats=FORMATS).json()["choices"][0]["message"]
    chunks = events(ask("POST", CHAT, HI | TOOLS | options | {"stream": True}, formats=FORMATS))[:-1]
    deltas = [each["choices"][0]["delta"] for each in chunks if each["choices"][0]["index"] == 0]
    assert "".join(each.get("content") or "" for each in deltas) == whole["content"]
    assert "".join(each.get("reasoning_content") or "" for each in deltas) == whole["reasoning_content"]
    pieces = [piece for each in deltas for piece in each.get("tool_calls", [])]
    firsts = [piece for piece in pieces if "id" in piece]
    assert [(each["index"], each["type"], each["function"]["name"]) for each in firsts] == [
        (0, "function", "f"), (1, "function", "f"),
    ]  # fmt: skip
    for number, (_, given) in enumerate(CALLS):
        mine = [piece["function"]["arguments"] for piece in pieces if piece["index"] == number]
        assert json.loads("".join(mine)) == given
    assert len(pieces) > 4, "arguments come in pieces"
    last = next(each["choices"][0] for each in reversed(chunks) if each["choices"][0]["index"] == 0)
    assert last["finish_reason"] == "tool_calls"


def test_without_tools_calls_are_text(ask):
    for options in ({}, TOOLS | {"tool_choice": "none"}):
        message = ask("POST", CHAT, HI | options, formats=FORMATS).json()["choices"][0]["message"]
        assert "<tool_call>" in message["content"] and "tool_calls" not in message


def test_a_template_that_does_not_show_tools_is_warned_of(ask):
    assert "warning" not in ask("POST", CHAT, HI | TOOLS, formats=FORMATS).headers
    silent = AnswerFormats(HERMES)
    assert "does not tell" in ask("POST", CHAT, HI | TOOLS, formats=silent).headers["warning"]


def test_items_of_a_response(ask):
    tools = {"tools": [{"type": "function", **FUNCTION}]}
    document = ask("POST", ANSWER, {"input": "Hi"} | tools, formats=FORMATS).json()
    ResponseDocument.model_validate(document)
    kinds = ["reasoning", "message", "function_call", "function_call"]
    assert [each["type"] for each in document["output"]] == kinds
    assert [(each["name"], json.loads(each["arguments"])) for each in document["output"][2:]] == CALLS
    used = document["usage"]
    assert 0 < used["output_tokens_details"]["reasoning_tokens"] < used["output_tokens"]
    found = events(ask("POST", ANSWER, {"input": "Hi", "stream": True} | tools, formats=FORMATS))
    last = found[-1]["response"]
    assert last["usage"] == used
    ResponseDocument.model_validate(last)
    assert [each["type"] for each in last["output"]] == kinds
    added = [each for each in found if each["type"] == "response.output_item.added"]
    done = [each for each in found if each["type"] == "response.output_item.done"]
    assert [each["output_index"] for each in added] == [each["output_index"] for each in done] == [0, 1, 2, 3]
    assert [each["item"]["id"] for each in added] == [each["id"] for each in last["output"]]
    for index, (_, given) in enumerate(CALLS, 2):
        grown = [each for each in found if each["type"] == "response.function_call_arguments.delta"]
        assert json.loads("".join(each["delta"] for each in grown if each["output_index"] == index)) == given
    names = [each["type"] for each in found]
    assert names.index("response.reasoning_text.done") < names.index("response.output_text.delta")


@pytest.mark.parametrize(
    ("fields", "code", "field"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}] * 2}, "BAD_TOOLS", "tools[1].function.name"),
        ({"tool_choice": "required"}, "BAD_TOOL_CHOICE", "tool_choice"),
        ({**TOOLS, "tool_choice": {"type": "function", "function": {"name": "g"}}}, "BAD_TOOL_CHOICE", "tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"$ref": "#/x"}}}]}, "BAD_SCHEMA",
         None),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {
            "properties": {"a": {"type": "string", "pattern": "("}}}}}]}, "BAD_SCHEMA", None),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"d": "x" * 70_000}}}]},
         "TOOLS_LIMIT", None),
    ],
)  # fmt: skip
def test_bad_tools(ask, fields, code, field):
    response = ask("POST", CHAT, HI | fields)
    assert (response.status_code, response.json()["error"]["code"]) == (400, code)
    assert field is None or response.json()["error"]["param"] == field


FORMS = [
    ({"response_format": {"type": "json_object"}}, "json_object", True),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}},
     "json", '{"type": "object"}'),
    ({"response_format": {"type": "regex", "regex": "a+"}}, "regex", "a+"),
    ({"response_format": {"type": "grammar", "grammar": "start: /a/"}}, "grammar", "start: /a/"),
    ({"structured_outputs": {"choice": ["a", "b"]}}, "choice", ("a", "b")),
    ({"guided_json": {"type": "object"}}, "json", '{"type": "object"}'),
    ({"guided_regex": "a"}, "regex", "a"),
    ({"guided_choice": ["a"]}, "choice", ("a",)),
    ({"guided_grammar": "start: /a/"}, "grammar", "start: /a/"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "form", "value"), FORMS, ids=lambda each: str(each)[:40])
@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_the_form_of_an_answer_reaches_the_model(ask, llm, path, fields, form, value):
    assert ask("POST", path, (HI if path == CHAT else {"prompt": "x"}) | fields).status_code == 200
    wanted = llm.submitted[0]["sampling"].structured_outputs
    assert llm.forms == [wanted]
    assert (wanted.form, getattr(wanted, form)) == (form, value)


def test_text_that_may_be_anything_has_no_form(ask, llm):
    ask("POST", CHAT, HI | {"response_format": {"type": "text"}})
    assert llm.submitted[0]["sampling"].structured_outputs is None and llm.forms == []


def test_the_form_of_a_response(ask, llm):
    schema = {"type": "json_schema", "name": "x", "schema": {"type": "object"}}
    assert ask("POST", ANSWER, {"input": "Hi", "text": {"format": schema}}).json()["text"] == {"format": schema}
    assert llm.submitted[0]["sampling"].structured_outputs.json == '{"type": "object"}'


@pytest.mark.parametrize(
    ("path", "fields", "code", "field"),
    [
        (CHAT, {"response_format": {"type": "regex", "regex": "a(?=b)"}}, "BAD_REGEX", "response_format.regex"),
        (CHAT, {"guided_regex": "a(?=b)"}, "BAD_REGEX", "guided_regex"),
        (CHAT, {"structured_outputs": {"regex": "a(?=b)"}}, "BAD_REGEX", "structured_outputs.regex"),
        (CHAT, {"guided_json": {"$ref": "#/x"}}, "BAD_SCHEMA", "guided_json"),
        (CHAT, {"structured_outputs": {"regex": "a", "json": {}}}, "BAD_REQUEST", "structured_outputs"),
        (CHAT, {"structured_outputs": {}}, "BAD_REQUEST", "structured_outputs"),
        (CHAT, {"guided_regex": "a", "guided_choice": ["a"]}, "BAD_REQUEST", "guided_choice"),
        (CHAT, {"guided_regex": "a" * 70_000}, "GRAMMAR_LIMIT", "guided_regex"),
        (CHAT, {"guided_choice": []}, "BAD_REQUEST", "guided_choice"),
        (CHAT, {"guided_json": "[1]"}, None, None),
        (CHAT, TOOLS | {"tool_choice": "required", "guided_regex": "a"}, "BAD_REQUEST", "tool_choice"),
    ],
)
def test_forms_that_cannot_be(ask, llm, path, fields, code, field):
    response = ask("POST", path, HI | fields)
    if code is None:  # whether a text is a schema is for the compiler to say
        assert llm.forms[0].json == "[1]"
        return
    assert (response.status_code, response.json()["error"]["code"]) == (400, code)
    assert response.json()["error"]["param"] == field
    assert llm.submitted == []


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "f"}}])
def test_a_call_that_must_be_is_forced_by_a_grammar(ask, llm, choice):
    llm.script = Script(answer=WRITTEN.strip())
    message = ask("POST", CHAT, HI | TOOLS | {"tool_choice": choice}, formats=FORMATS).json()["choices"][0]["message"]
    assert calls_of(message) == CALLS
    assert "tool_call" in llm.submitted[0]["sampling"].structured_outputs.grammar
    ask("POST", CHAT, HI | TOOLS | {"tool_choice": choice, "parallel_tool_calls": False}, formats=FORMATS)
    several, single = (each["sampling"].structured_outputs.grammar for each in llm.submitted)
    assert several != single


def test_a_strict_tool_is_held_to_its_schema(ask, llm):
    strict = {"tools": [{"type": "function", "function": FUNCTION | {"strict": True}}]}
    ask("POST", CHAT, HI | strict, formats=FORMATS)
    ask("POST", CHAT, HI | TOOLS, formats=FORMATS)
    first, second = (each["sampling"].structured_outputs for each in llm.submitted)
    assert first.form == "grammar" and second is None


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        (
            {"properties": {"a": {"pattern": "a+"}, "b": {"items": {"pattern": "(?=a)b"}}}},
            "/properties/b/items/pattern",
        ),
        ({"patternProperties": {"(?=/~)": {}}}, "/patternProperties/(?=~1~0)"),
        ({"properties": {"a": {"minimum": 1, "uniqueItems": True}}}, "/properties/a/uniqueItems"),
    ],
)
def test_what_cannot_be_enforced_of_a_strict_tool_is_named_with_its_place(ask, schema, place):
    def function(name, **fields):
        return {"type": "function", "function": {"name": name, **fields}}

    loose = function("f", parameters={"properties": {"a": {"pattern": "(?=a)"}}})
    tools = [loose, function("g", strict=True, parameters=schema)]
    for body in (HI | {"tools": tools}, HI | {"tools": tools, "tool_choice": "required"}):
        error = ask("POST", CHAT, body, formats=FORMATS).json()["error"]
        assert (error["code"], error["param"]) == ("BAD_SCHEMA", f"tools[1].function.parameters#{place}")


def test_where_strict_cannot_be_kept_the_answer_says_so(ask, llm):
    strict = {"tools": [{"type": "function", "function": FUNCTION | {"strict": True}}]}
    bare = AnswerFormats(TOOL_FORMATS["llama3_json"], shows_tools=True)
    assert "strict cannot be enforced" in ask("POST", CHAT, HI | strict, formats=bare).headers["warning"]
    assert llm.submitted[0]["sampling"].structured_outputs is None
    assert "warning" not in ask("POST", CHAT, HI | strict | {"tool_choice": "required"}, formats=bare).headers
    assert "warning" not in ask("POST", CHAT, HI | strict, formats=FORMATS).headers
