"""Bad requests, row by row: the status, the code and the field of the refusal; nothing reaches the model."""

from __future__ import annotations

import asyncio
import json
import logging
import re

import pytest

from .conftest import JSON, client
from .fake import CONTEXT

CHAT, TEXT, ANSWER = "/v1/chat/completions", "/v1/completions", "/v1/responses"
HI = [{"role": "user", "content": "Hi"}]


def chat(**fields):
    return {"messages": HI} | fields


def text(**fields):
    return {"prompt": "Hi"} | fields


def call(**function):
    return [{"type": "function", "function": function}]


PROMPTS = [
    ({"prompt": ""}, "EMPTY_PROMPT", "prompt"),
    ({"prompt": []}, "EMPTY_PROMPT", "prompt"),
    ({"prompt": [[]]}, "EMPTY_PROMPT", "prompt[0]"),
    ({"prompt": ["Hi", ""]}, "EMPTY_PROMPT", "prompt[1]"),
    ({"prompt": None}, "BAD_REQUEST", "prompt"),
    ({}, "BAD_REQUEST", "prompt"),
    ({"prompt": ["Hi", [5]]}, "BAD_REQUEST", "prompt"),
    ({"prompt": [5, "Hi"]}, "BAD_REQUEST", "prompt[1]"),
    ({"prompt": {"a": 1}}, "BAD_REQUEST", "prompt"),
    ({"prompt": True}, "BAD_REQUEST", "prompt"),
    ({"prompt": ["Hi"] * 257}, "BAD_REQUEST", "prompt"),
    ({"prompt": [5] * CONTEXT}, "context_length_exceeded", "prompt"),
    ({"prompt": [5] * (CONTEXT - 3), "max_tokens": 4}, "context_length_exceeded", "max_tokens"),
    ({"prompt": [-1]}, "TOKEN_OUT_OF_RANGE", "prompt[0]"),
    ({"prompt": [2**32]}, "TOKEN_OUT_OF_RANGE", "prompt[0]"),
    ({"prompt": [5, 260]}, "TOKEN_OUT_OF_RANGE", "prompt[1]"),
    ({"prompt": [[5, 260], [5]]}, "TOKEN_OUT_OF_RANGE", "prompt[0][1]"),
    ({"prompt": ["x" * CONTEXT, "Hi"]}, "context_length_exceeded", "prompt[0]"),
    ({"prompt": [1.5]}, "BAD_REQUEST", "prompt[0]"),
    ({"prompt": [5, True]}, "BAD_REQUEST", "prompt[1]"),
    ({"prompt": [[5], [[5]]]}, "BAD_REQUEST", "prompt[1][0]"),
    (text(prompt_embeds=[1.0]), "UNSUPPORTED_PARAMETER", "prompt_embeds"),
    ({"prompt": ["x"] * 129, "n": 2}, "BAD_REQUEST", "n"),
    (text(suffix="x"), "UNSUPPORTED_PARAMETER", "suffix"),
]

HUGE = int("9" * 4000)
SAMPLING = [
    *[("max_tokens", value) for value in (0, -1, 2**31, 2**63, 1.5, "7", True, [], {})],
    *[("n", value) for value in (0, -1, 65, 10**6, 10**18, "1", True, 1.5)],
    *[("temperature", value) for value in (-1, 1e-30, 1e30, "nan", True, 101)],
    *[("top_p", value) for value in (0, 1.0001, -0.1, "1", False)],
    *[("top_k", value) for value in (-2, 2**40, 1.5)],
    *[("min_p", value) for value in (-0.1, 1.1)],
    *[(name, value) for name in ("presence_penalty", "frequency_penalty") for value in (1e9, -1e9, 2.1, "0")],
    *[("repetition_penalty", value) for value in (0, 5e-324, -1, 1e9)],
    *[("seed", value) for value in (-(2**63) - 1, 2**70, HUGE, 1.5, "1", True)],
    *[("prompt_logprobs", value) for value in (-1, 21, 10**6, True)],
    *[("stop", value) for value in ("", [""], ["x"] * 65, "x" * 1025, 7, [7], {})],
    *[("min_tokens", value) for value in (-1, 2**31, "1")],
    *[("priority", value) for value in (2**31, 1.5, "1")],
    *[("cache_salt", value) for value in ("", "x" * 129, 5)],
    *[("stream", value) for value in (1, "true", [])],
    ("stream_options", True),
    ("stop_token_ids", [-1]),
    ("stop_token_ids", [2**31]),
    ("stop_token_ids", [260]),
    ("stop_token_ids", ["5"]),
    ("stop_token_ids", [5] * 100_001),
    ("allowed_token_ids", []),
    ("allowed_token_ids", [260]),
    ("logit_bias", {"-1": 1}),
    ("logit_bias", {"260": 1}),
    ("logit_bias", {str(2**63): 1}),
    ("logit_bias", {"abc": 1}),
    ("logit_bias", {"\u0665": 1}),
    ("logit_bias", {"5": 101}),
    ("logit_bias", {"5": "1"}),
    ("logit_bias", {str(n): 1 for n in range(1025)}),
    ("logit_bias", [1]),
]

CHATS = [
    ({"messages": None}, "BAD_MESSAGES", "messages"),
    ({}, "BAD_MESSAGES", "messages"),
    ({"messages": []}, "BAD_MESSAGES", "messages"),
    ({"messages": "Hi"}, "BAD_MESSAGES", "messages"),
    ({"messages": HI * 2_049}, "BAD_MESSAGES", "messages"),
    (
        {
            "messages": [
                {
                    "role": "assistant",
                    "tool_calls": [
                        {"id": "a", "type": "function", "function": {"name": "f", "arguments": f"[{'1,' * 100_001}1]"}}
                    ],
                }
            ]
        },
        "BAD_MESSAGES",
        "messages[0].tool_calls[0].function.arguments",
    ),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "BAD_MESSAGES", "messages[0].role"),
    ({"messages": [{"content": "x"}]}, "BAD_MESSAGES", "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "BAD_MESSAGES", "messages[0].content"),
    ({"messages": [{"role": "user", "content": None}]}, "BAD_MESSAGES", "messages[0].content"),
    ({"messages": [*HI, {"role": "user", "content": 7}]}, "BAD_MESSAGES", "messages[1].content"),
    ({"messages": [{"role": "user", "content": [7]}]}, "BAD_MESSAGES", "messages[0].content[0]"),
    ({"messages": [{"role": "assistant"}]}, "BAD_MESSAGES", "messages[0]"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "BAD_MESSAGES", "messages[0].tool_call_id"),
    ({"messages": [{"role": "user", "content": "x", "name": "n" * 2**20}]}, "BAD_MESSAGES", "messages[0].name"),
    *[
        ({"messages": [{"role": "user", "content": [part]}]}, "UNSUPPORTED_INPUT", "messages[0].content[0].type")
        for part in (
            {"type": "image_url", "image_url": {"url": "http://x/y.png"}},
            {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}},
            {"type": "video_url", "video_url": {"url": "x"}},
            {"type": "file", "file": {}},
        )
    ],
    (chat(best_of=2), "UNSUPPORTED_PARAMETER", "best_of"),
    (chat(use_beam_search=True), "UNSUPPORTED_PARAMETER", "use_beam_search"),
    (chat(audio={"voice": "x"}), "UNSUPPORTED_PARAMETER", "audio"),
    (chat(modalities=["text", "audio"]), "UNSUPPORTED_PARAMETER", "modalities"),
    (chat(functions=[{}]), "UNSUPPORTED_PARAMETER", "functions"),
    (chat(web_search_options={}), "UNSUPPORTED_PARAMETER", "web_search_options"),
    (chat(top_logprobs=21), "BAD_REQUEST", "top_logprobs"),
    (chat(logprobs=5), "BAD_REQUEST", "logprobs"),
    (chat(max_completion_tokens=0), "BAD_REQUEST", "max_completion_tokens"),
    (chat(min_tokens=9, max_tokens=8), "BAD_REQUEST", "min_tokens"),
    ({"messages": [{"role": "user", "content": "x" * CONTEXT}]}, "context_length_exceeded", "messages"),
    (chat(max_tokens=CONTEXT), "context_length_exceeded", "max_tokens"),
    (chat(max_completion_tokens=CONTEXT), "context_length_exceeded", "max_completion_tokens"),
    (chat(chat_template="{{ 1 }}"), "NOT_ALLOWED", "chat_template"),
    *[
        (chat(chat_template_kwargs={name: 1}), "NOT_ALLOWED", "chat_template_kwargs")
        for name in ("tokenize", "chat_template", "messages", "tools", "__class__")
    ],
    (chat(chat_template_kwargs={f"a{n}": 1 for n in range(33)}), "TEMPLATE_LIMIT", "chat_template_kwargs"),
    (chat(chat_template_kwargs={"a": "x" * 20_000}), "TEMPLATE_LIMIT", "chat_template_kwargs"),
    (chat(chat_template_kwargs=[]), "BAD_REQUEST", "chat_template_kwargs"),
    (chat(continue_final_message=True), "BAD_MESSAGES", "continue_final_message"),
    (chat(tools=call(name="f") * 10_000), "BAD_REQUEST", "tools"),
    (chat(tools=call(name="two words")), "BAD_REQUEST", "tools[0].function.name"),
    (chat(tools=call(name="f", parameters="x")), "BAD_REQUEST", "tools[0].function.parameters"),
    (chat(tools=call()), "BAD_REQUEST", "tools[0].function.name"),
    (chat(tools=[{"type": "retrieval"}]), "BAD_REQUEST", "tools[0].type"),
    (chat(tool_choice="sometimes"), "BAD_REQUEST", "tool_choice"),
    (chat(response_format={"type": "xml"}), "BAD_REQUEST", "response_format.type"),
    (chat(response_format={"type": "json_schema"}), "BAD_REQUEST", "response_format.json_schema"),
]

ANSWERS = [
    ({"input": ""}, "BAD_REQUEST", "input"),
    ({}, "BAD_REQUEST", "input"),
    ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "UNSUPPORTED_INPUT",
     "input[0].content[0].type"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "BAD_REQUEST", "input[0].type"),
    ({"input": "x", "store": True}, "UNSUPPORTED_PARAMETER", "store"),
    ({"input": "x", "previous_response_id": "resp_1"}, "UNSUPPORTED_PARAMETER", "previous_response_id"),
    ({"input": "x", "background": True}, "UNSUPPORTED_PARAMETER", "background"),
    ({"input": "x", "truncation": "auto"}, "UNSUPPORTED_PARAMETER", "truncation"),
    ({"input": "x", "max_output_tokens": 0}, "BAD_REQUEST", "max_output_tokens"),
    ({"input": "x", "tools": [{"type": "web_search"}]}, "BAD_REQUEST", "tools[0].type"),
    ({"input": "x" * CONTEXT}, "context_length_exceeded", "input"),
    ({"input": "x", "max_output_tokens": CONTEXT}, "context_length_exceeded", "max_output_tokens"),
    ({"input": [{"type": "function_call_output", "call_id": "x", "output": "y"}]}, "BAD_MESSAGES", "input"),
    ({"input": "x", "tools": [{"type": "function", "name": "f", "parameters": {"type": 7}}]}, "BAD_SCHEMA",
     "tools[0].parameters#/type"),
]  # fmt: skip

ROWS = [
    *[(TEXT, *row) for row in PROMPTS],
    *[(CHAT, *row) for row in CHATS],
    *[(ANSWER, *row) for row in ANSWERS],
    *[(path, body | {name: value}, None, name) for name, value in SAMPLING for path, body in
      ((CHAT, chat()), (TEXT, text()))],
    (TEXT, text(logprobs=21), "BAD_REQUEST", "logprobs"),
    (TEXT, text(logprobs=-1), "BAD_REQUEST", "logprobs"),
    (TEXT, text(logprobs=True), "BAD_REQUEST", "logprobs"),
    ("/tokenize", {}, "BAD_REQUEST", "body"),
    ("/tokenize", {"prompt": "x", "messages": HI}, "BAD_REQUEST", "body"),
    ("/tokenize", {"messages": HI, "chat_template": "x"}, "NOT_ALLOWED", "chat_template"),
    ("/detokenize", {"tokens": [260]}, "TOKEN_OUT_OF_RANGE", "tokens[0]"),
    ("/detokenize", {"tokens": [-1]}, "BAD_REQUEST", "tokens[0]"),
]  # fmt: skip


def test_every_row(llm, caplog):
    """All in one application: no refusal leaves anything behind that changes the next."""
    caplog.set_level(logging.WARNING, "bestiary.http")
    wrong = []

    async def run() -> None:
        async with client(llm) as http:
            for path, body, code, field in ROWS:
                caplog.clear()
                # Python writes integers that others would not: these bytes are a client's
                response = await http.post(path, content=encoded(body), headers=JSON)
                error = response.json().get("error", {})
                expected = error.get("code") if code is None else code
                place = re.split(r"[.\[]", error.get("param") or "")[0] if code is None else error.get("param")
                lines = [record.getMessage() for record in caplog.records]
                if (response.status_code, error.get("code"), place) != (400, expected, field) or len(lines) != 1:
                    wrong.append((path, str(body)[:80], response.status_code, error, lines))

    asyncio.run(run())
    assert wrong == [], "\n".join(map(str, wrong))
    assert llm.submitted == [] and not llm.live


def encoded(body: object) -> bytes:
    if isinstance(body, dict) and body.get("seed") == HUGE:
        return json.dumps(body | {"seed": 0}).replace('"seed": 0', '"seed": ' + "9" * 4000).encode()
    return json.dumps(body).encode()


@pytest.mark.parametrize("name", ["temperature", "top_p", "min_p", "presence_penalty", "logit_bias"])
@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e400"])
def test_numbers_that_are_none(ask, name, value):
    given = f'{{"5": {value}}}' if name == "logit_bias" else value
    body = json.dumps(chat())[:-1] + f', "{name}": {given}}}'
    response = ask("POST", CHAT, content=body.encode(), headers=JSON)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "BAD_JSON")


@pytest.mark.parametrize("model", ["other", "TINY", "../x", "x" * 2**20, None, ""])
@pytest.mark.parametrize(("path", "body"), [(CHAT, chat()), (TEXT, text()), (ANSWER, {"input": "x"})])
def test_an_unknown_model_is_not_found_and_the_known_ones_are_listed(ask, path, body, model):
    error = ask("POST", path, body | {"model": model}, served_model_names=("tiny", "small"))
    assert error.status_code == 404
    assert error.json()["error"]["code"] == "model_not_found"
    assert "tiny, small" in error.json()["error"]["message"]


def test_messages_name_the_field_the_limit_and_the_value_cut_short(ask):
    message = ask("POST", TEXT, text(n=10**6)).json()["error"]["message"]
    assert "n must be less than or equal to 64" in message and "1000000" in message
    long = ask("POST", TEXT, text(cache_salt="s" * 5000)).json()["error"]
    assert len(long["value"]) <= 64 and len(long["message"]) < 300


def test_every_offender_is_listed(ask):
    error = ask("POST", TEXT, text(n=0, top_p=2, max_tokens="x")).json()["error"]
    assert len(error["details"]) == 2


@pytest.mark.parametrize("strict", [False, True])
def test_unknown_and_idle_fields_are_warned_of_or_refused(ask, strict):
    response = ask("POST", CHAT, chat(foo=1, user="u", **{'x"\r\ny': 2}), strict_fields=strict)
    if strict:
        assert (response.status_code, response.json()["error"]["code"]) == (400, "UNKNOWN_FIELD")
        return
    assert response.status_code == 200
    warning = response.headers["warning"]
    assert "user has no effect" in warning and "unknown field foo is ignored" in warning
    assert "unknown field x???y is ignored" in warning


def test_a_misspelt_field_is_recognised_under_strict_fields(ask):
    error = ask("POST", CHAT, chat(max_token=1), strict_fields=True).json()["error"]
    assert error["fix"] == "did you mean max_tokens?"


def test_what_the_model_refuses_is_passed_on(ask, llm):
    from bestiary.api.errors import RequestError

    llm.refuse = RequestError("too many", code="QUEUE_FULL", limit="8 running and 256 waiting")
    response = ask("POST", CHAT, chat())
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert llm.rendered == [], "nothing is rendered for who is sent away"
    llm.refuse = RequestError("going", code="SERVER_SHUTDOWN")
    response = ask("POST", CHAT, chat())
    assert (response.status_code, response.json()["error"]["code"]) == (503, "server_shutdown")


def test_a_defect_says_nothing_but_its_id_and_is_logged_with_its_traceback(ask, llm, caplog):
    llm.refuse = ZeroDivisionError("secret of " + "/" + "home/somebody")
    response = ask("POST", CHAT, chat())
    assert response.status_code == 500
    error = response.json()["error"]
    assert error["code"] == "INTERNAL" and "secret" not in response.text
    record = next(each for each in caplog.records if each.exc_info)
    assert error["request_id"] in record.getMessage()


def test_a_log_line_is_one_line_whatever_is_sent(ask, caplog):
    ask("POST", "/v1/x%0d%0afaked%20line", {})
    assert len(caplog.records) == 1
    assert "\n" not in caplog.records[0].getMessage() and "\r" not in caplog.records[0].getMessage()


@pytest.mark.parametrize(("path", "body"), [(CHAT, chat), (TEXT, text), (ANSWER, dict)])
def test_a_text_that_can_never_fit_is_not_encoded(ask, llm, monkeypatch, path, body):
    async def encode(*_, **__):
        raise AssertionError("it was encoded")

    monkeypatch.setattr(llm, "encode", encode)
    long = "Hi " * 100_000
    fields = {CHAT: {"messages": [{"role": "user", "content": long}]}, TEXT: {"prompt": long}, ANSWER: {"input": long}}
    error = ask("POST", path, body(**fields[path])).json()["error"]
    assert error["code"] == "context_length_exceeded" and "at least" in error["message"]
