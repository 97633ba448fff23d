"""R rows: bad fields, prompts, messages, tools, bodies and models."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from typing import Any

from ..support.t0 import CONTEXT, TOKENS, VOCAB
from .row import ANSWER, CHAT, FINE, HI, TEXT, Row, chat, encoded, literal, refused, text
from .row import TOKENS as TOKENIZE

BIG = "9" * 4000
FIELDS: dict[str, dict[str, list[Any]]] = {
    "R03": {
        "max_tokens": [0, -1, 2**31, 2**63, 1.5, "7", True, [], {}, [7], -(2**63), "0x10"],
        "min_tokens": [-1, 2**31, "1", 1.5, False, [1]],
    },
    "R04": {"n": [0, -1, 65, 10**6, 10**18, "1", True, 1.5, [1], {"n": 1}]},
    "R07": {
        "stop": ["", [""], ["x"] * 65, "x" * 1025, 7, [7], {}, [None], [["x"]], True],
        "stop_token_ids": [[-1], [2**31], [2**63], ["5"], [5] * 100_001, 5, [1.5], [True], [[5]], "5"],
        "allowed_token_ids": [[], [-1], [2**31], ["5"], 5, [5] * 100_001, [None], {}],
        "bad_token_ids": [[-1], [2**31], ["5"], [5] * 100_001, 7, [1.5]],
    },
    "R06": {
        "logit_bias": [
            {"-1": 1}, {str(2**63): 1}, {"abc": 1}, {"\u0665": 1}, {"": 1}, {" 5": 1}, {"5.0": 1}, {"5": 101},
            {"5": -100.5}, {"5": "1"}, {"5": None}, {"5": True}, {"5": [1]}, {str(n): 1 for n in range(1025)}, [1], 5,
            "5", True, [["5", 1]], {str(n): 1 for n in range(50_000)},
        ]
    },
    "R10": {
        "temperature": [-1, 1e-30, 1e30, "nan", "0.5", True, 101, [0], {}],
        "top_p": [0, 1.0001, -0.1, "1", False, 2**40, []],
        "top_k": [-2, 2**40, 1.5, "5", True, [5]],
        "min_p": [-0.1, 1.1, "0", True, 1e9],
        "presence_penalty": [1e9, -1e9, 2.1, "0", True],
        "frequency_penalty": [1e9, -1e9, -2.1, "0", []],
        "repetition_penalty": [0, -1, 1e9, "1", True],
    },
    "R11": {"prompt_logprobs": [-1, 21, 10**6, True, "1", 1.5]},
    "R13": {"seed": [-(2**63) - 1, 2**64, 2**70, 1.5, "1", True, [1]]},
    "R05": {
        "stream": [1, "true", [], 0],
        "stream_options": [True, "x", [], {"include_usage": 1}],
        "priority": [2**31, -(2**31), 1.5, "1", True],
        "cache_salt": ["", "x" * 129, 5, ["x"], "x" * 2**20],
        "ignore_eos": [1, "true", {}],
        "skip_special_tokens": [0, "no"],
        "return_token_ids": [1, "yes"],
    },
}  # fmt: skip
"""Row → field → values that are none for it, whichever of the two endpoints is asked."""
BOMB = gzip.compress(b"0" * 2**22)
CONSTANTS = ("NaN", "Infinity", "-Infinity", "1e400", "-1e999")
NUMBERS = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "seed", "n")


def rows() -> Iterator[Row]:
    for part in (_fields, _constants, _ids, _prompts, _lengths, _odd_but_defined, _unsupported, _bodies, _kinds):
        yield from part()
    for part in (_messages, _tools, _models, _answers, _tokens):
        yield from part()


def _fields() -> Iterator[Row]:
    for id_, table in FIELDS.items():
        for name, values in table.items():
            for value in values:
                yield refused(id_, text(**{name: value}), path=TEXT)
                yield refused(id_, chat(**{name: value}), path=CHAT)


def _constants() -> Iterator[Row]:
    for name in NUMBERS:
        for value in CONSTANTS:
            yield refused("R10", literal(chat(), name, value), "BAD_JSON", "body", path=CHAT)
    for value in CONSTANTS:
        yield refused("R06", literal(text(), "logit_bias", f'{{"5": {value}}}'), "BAD_JSON", "body")
    yield refused("R13", literal(text(), "seed", BIG), param="seed")
    yield refused("R13", literal(text(), "seed", "9" * 5000), "BAD_JSON", "body")
    yield refused("R03", literal({"prompt": "Hi"}, "max_tokens", "-" + BIG), param="max_tokens")


def _ids() -> Iterator[Row]:
    """Ids around the two widths: the tokenizer's, and the logits', which is larger."""
    for name in ("stop_token_ids", "allowed_token_ids", "bad_token_ids"):
        for token in (VOCAB, VOCAB + 1, 2**31 - 1):
            yield refused("R07", text(**{name: [token]}), "TOKEN_OUT_OF_RANGE")
        yield Row(id="R07", body=encoded(text(**{name: [TOKENS, VOCAB - 1]})), outcomes=(FINE,))
    yield refused("R07", text(bad_token_ids=list(range(VOCAB))), "NOTHING_TO_DRAW")
    yield refused("R07", text(allowed_token_ids=[5], bad_token_ids=[5]), param="allowed_token_ids")
    for token in (VOCAB, 999_999_999):
        yield refused("R06", text(logit_bias={str(token): 1}), "TOKEN_OUT_OF_RANGE")
    for token in (2**31 - 1, 2**32, 9_999_999_999):
        yield refused("R06", text(logit_bias={str(token): 1}), param=f"logit_bias.{token}")
    yield Row(id="R06", body=encoded(text(logit_bias={str(n): -100 for n in range(VOCAB)})), outcomes=(FINE,))


def _prompts() -> Iterator[Row]:
    for prompt, param in [("", "prompt"), ([], "prompt"), ([[]], "prompt[0]"), ([""], "prompt[0]"),
                          (["Hi", ""], "prompt[1]"), ([[5], []], "prompt[1]")]:  # fmt: skip
        yield refused("R01", {"prompt": prompt}, "EMPTY_PROMPT", param)
    for mixed in (["Hi", [5]], [[5], "Hi"], ["Hi", 5], [5, "Hi"], [5, None], [None], [True], [{}], {"a": 1}, True,
                  None, 7, 1.5, ["Hi"] * 257, [[5]] * 257, [[5], [[5]]], [["Hi"]], [1.5], [5, 5.5], [5, True],
                  [[5, "5"]], [[5, None]]):  # fmt: skip
        yield refused("R08" if isinstance(mixed, list) else "R01", {"prompt": mixed})
    yield refused("R01", {}, param="prompt")
    for token in (-1, 2**31, 2**32, 2**63, -(2**63)):
        yield refused("R08", {"prompt": [token]}, "TOKEN_OUT_OF_RANGE", "prompt[0]")
        yield refused("R08", {"prompt": [[5], [5, token]]}, "TOKEN_OUT_OF_RANGE", "prompt[1][1]")
    for token in (VOCAB, VOCAB + 1, 2**31 - 1):
        yield refused("R08", {"prompt": [5, 6, token]}, "TOKEN_OUT_OF_RANGE")
    yield Row(id="R08", body=encoded(text(prompt=[5.0, VOCAB - 1])), outcomes=(FINE,))


def _lengths() -> Iterator[Row]:
    """A prompt is never cut; nor is an answer, except where the request did not say how long it must be."""
    long = "context_length_exceeded"
    for length in (CONTEXT, CONTEXT + 1, 5 * CONTEXT, 500_000):
        yield refused("R02", {"prompt": [5] * length}, long, "prompt")
    yield refused("R02", {"prompt": [5] * (CONTEXT - 3), "max_tokens": 4}, long, "max_tokens")
    yield refused("R02", {"prompt": [5], "max_tokens": CONTEXT}, long, "max_tokens")
    yield refused("R02", {"prompt": [5], "max_tokens": 2**31 - 1}, long, "max_tokens")
    yield refused("R02", {"prompt": "Hi " * 2**20}, long, "prompt")
    yield refused("R02", {"messages": [{"role": "user", "content": "Hi " * 2**18}]}, long, path=CHAT)
    yield refused("R02", {"prompt": [[5], [5] * CONTEXT]}, long)
    for length, most in ((CONTEXT - 1, 1), (CONTEXT - 4, 4)):
        yield Row(id="R02", body=encoded({"prompt": [5] * length, "max_tokens": most}), outcomes=(FINE,))


def _odd_but_defined() -> Iterator[Row]:
    penalties = {"presence_penalty": 2, "frequency_penalty": -2, "repetition_penalty": 100}
    for fields in (penalties, {"top_k": -1}, {"top_k": 2**31 - 1}, {"temperature": 100, "seed": 2**64 - 1},
                   {"temperature": 1e-3}, {"seed": -1}, {"seed": 2**63}, {"logit_bias": {"5": 100}}, {"n": 64.0},
                   {"min_p": 1}, {"top_p": 1e-300}):  # fmt: skip
        yield Row(id="R10", body=encoded({"prompt": [7], "max_tokens": 2} | fields), outcomes=(FINE,))
    yield refused("R03", text(min_tokens=9, max_tokens=8), param="min_tokens")
    for path, field in ((TEXT, "logprobs"), (CHAT, "top_logprobs")):
        for value in (-1, 21, 10**6, "1", 1.5):
            body = text(logprobs=value) if path == TEXT else chat(logprobs=True, top_logprobs=value)
            yield refused("R11", body, param=field, path=path)
    yield refused("R11", chat(logprobs=5), param="logprobs", path=CHAT)


def _unsupported() -> Iterator[Row]:
    for name, value in (("best_of", 2), ("use_beam_search", True), ("length_penalty", 2.0), ("bad_words", ["x"])):
        for path, body in ((TEXT, text()), (CHAT, chat())):
            yield refused("R05", body | {name: value}, "UNSUPPORTED_PARAMETER", path=path)
    yield refused("R05", text(suffix="x"), "UNSUPPORTED_PARAMETER", "suffix")
    for name, value in (("functions", [{}]), ("function_call", "auto"), ("web_search_options", {}),
                        ("audio", {"voice": "x"})):  # fmt: skip
        yield refused("R05", chat(**{name: value}), "UNSUPPORTED_PARAMETER", name, path=CHAT)
    for unknown in ({"foo": 1}, {"n_keep": -1}, {"n_discard": 5}, {'x"\r\ny': 2}, {"": 1}, {"__class__": 1},
                    {"\u202e": 1}, {f"f{number}": 1 for number in range(5000)}):  # fmt: skip
        yield Row(id="R05", body=encoded(text() | unknown), outcomes=(FINE,))
    for path, body in ((TEXT, text()), (CHAT, chat())):
        yield refused("R18", body | {"prompt_embeds": [1.0]}, "UNSUPPORTED_PARAMETER", path=path)
    yield refused("R18", chat(modalities=["text", "audio"]), "UNSUPPORTED_PARAMETER", path=CHAT)
    for kind in ("image_url", "input_audio", "video_url", "file", "image", "audio_url"):
        body = chat(messages=[{"role": "user", "content": [{"type": kind, kind: {"url": "file:///x"}}]}])
        yield refused("R18", body, "UNSUPPORTED_INPUT", "messages[0].content[0].type", path=CHAT)
    for kind in ("input_image", "input_audio", "input_file"):
        body = {"input": [{"role": "user", "content": [{"type": kind}]}]}
        yield refused("R18", body, "UNSUPPORTED_INPUT", "input[0].content[0].type", path=ANSWER)


def _bodies() -> Iterator[Row]:
    plain = json.dumps(text())
    for body in (
        b"", b" ", b"not json", b"null", b"[]", b"7", b"true", b'"x"', b'"' + b"x" * 2**20 + b'"', b"[" * 10**4,
        b'{"a":' * 10**4, b'{"prompt": "a", "prompt": "b"}', b'{"a": {"b": 1, "b": 2}}', b'{"a": 1, "\\u0061": 2}',
        b'{"a": NaN}', plain.encode("utf-16"), plain.encode("utf-32"), b"\xef\xbb\xbf" + plain.encode(),
        b'{"prompt": "\\ud800"}', b'{"prompt": "\xff"}', b'{"prompt": "\xed\xa0\x80"}', b'{"prompt": "a\x00b"}',
        b"\x00" * 100, b'{"prompt": "x"} {}', b'{"prompt": "x",}', b"{'prompt': 'x'}", b'{"prompt": "x"', b"{" * 50,
        b'{"prompt": 0x10}', b'{"prompt": 01}', b"\x1f\x8b\x08\x00",
        b'{"\\udc00": 1}', b"prompt=x&n=1", b"<?xml version='1.0'?><x/>", b'{"prompt": "\\x41"}',
    ):  # fmt: skip
        yield refused("R14", body, "BAD_JSON", "body")
    for path in (CHAT, ANSWER, TOKENIZE, "/detokenize", "/v1/embeddings", "/v1/load_lora_adapter"):
        for body in (b"", b"null", b"[" * 10**4, b'{"a": 1, "a": 2}'):
            yield refused("R14", body, "BAD_JSON", "body", path=path)
    parts = [{"type": "text", "text": "a"}] * 1000
    for body in (b"[" * 10**6, b'{"a":' * 10**6, b'{"a": [' + b"1," * 1_000_001 + b"1]}",
                 b'{"a": [' + b"{}," * 10**5 + b"{}]}"):  # fmt: skip
        yield refused("R14", body, "JSON_LIMIT", "body")
    for message in ({"role": "user", "content": parts}, {"role": "user", "content": [{"type": "image"}] * 1000}):
        yield refused("R14", chat(messages=[message] * 240), "JSON_LIMIT", "body", path=CHAT)
    large = ((413, "TOO_LARGE"),)
    yield Row(id="R14", body=b'{"prompt": "' + b"x" * 2**23 + b'"}', outcomes=large, deaf=True)
    yield Row(id="R14", headers={"content-length": str(2**62)}, outcomes=large)
    yield Row(id="R14", headers={"content-length": str(10**18)}, outcomes=large)
    yield Row(id="R14", body=b'{"prompt": "a\\u0000b", "max_tokens": 2}', outcomes=(FINE,))


def _kinds() -> Iterator[Row]:
    other = ((415, "UNSUPPORTED_MEDIA_TYPE"),)
    for kind in (None, "", "text/plain", "application/x-www-form-urlencoded", "application/json; charset=utf-7",
                 "application/json; charset=utf-16", "application/jsonp", "multipart/form-data; boundary=x",
                 "application/json, text/plain", "*/*", "x" * 5000, "application/json;" * 100):  # fmt: skip
        yield Row(id="R15", body=encoded(text()), headers={"content-type": kind}, outcomes=other, param="content-type")
    for encoding in ("gzip", "br, gzip", "deflate", "zstd", "identity, gzip", "x" * 3000):
        headers = {"content-encoding": encoding}
        yield Row(id="R15", body=BOMB, headers=headers, outcomes=other, param="content-encoding")


def _messages() -> Iterator[Row]:
    def bad(messages: Any, param: str | None = "", code: str = "BAD_MESSAGES") -> Row:
        return refused("R16", {"messages": messages}, code, param, path=CHAT)

    user = {"role": "user"}
    for messages in (None, [], "Hi", {}, 7, [None], ["Hi"], [[]], HI * 2049):
        yield bad(messages)
    yield bad(HI * 100_000, "body", "JSON_LIMIT")
    yield refused("R16", {}, "BAD_MESSAGES", "messages", path=CHAT)
    for role in ("wizard", "", "User", None, 7, ["user"], "x" * 2**20):
        yield bad([{"role": role, "content": "x"}])
    yield bad([{"content": "x"}], "messages[0].role")
    for content in (None, 7, True, {}, [], [7], ["x"], [None], [{}], [{"type": "text"}], [{"type": "text", "text": 7}],
                    [{"text": "x"}], [{"type": None}], [{"type": "text", "text": "x"}] * 1001):  # fmt: skip
        yield Row(
            id="R16", path=CHAT, body=encoded({"messages": [{**user, "content": content}]}),
            outcomes=((400, "BAD_MESSAGES"), (400, "UNSUPPORTED_INPUT")),
        )  # fmt: skip
    yield bad([user])
    yield bad([{"role": "assistant"}])
    yield bad([{"role": "assistant", "content": None, "tool_calls": []}])
    for calls in ("x", [7], [{}], [{"id": "a", "type": "function"}], [{"id": "", "type": "function", "function": {}}]):
        yield bad([{"role": "assistant", "content": None, "tool_calls": calls}])
    for answer in ({}, {"tool_call_id": None}, {"tool_call_id": ""}, {"tool_call_id": 7}, {"tool_call_id": "x" * 257}):
        yield bad([{"role": "tool", "content": "x"} | answer])
    for name in ("n" * 2**20, "", "two words", 7, "<|im_end|>"):
        yield bad([{**user, "content": "x", "name": name}])


def _tools() -> Iterator[Row]:
    def function(**fields: Any) -> dict[str, Any]:
        return {"type": "function", "function": {"name": "f"} | fields}

    def bad(tools: Any, code: str = "BAD_REQUEST") -> Row:
        return refused("R23", chat(tools=tools), code, path=CHAT)

    for tools in ([function()] * 10_000, "x", {}, [7], [{}], [{"type": "retrieval"}], [{"type": "function"}],
                  [function(name=None)], [function(name="")], [function(name="x" * 65)], [function(name="a b")],
                  [function(name="f\n")], [function(name="<f>")], [function(parameters="x")], [function(parameters=[])],
                  [function(strict=1)], [function(description=7)], [function(description="x" * 2**18)]):  # fmt: skip
        yield bad(tools)
    yield bad([function(), function()], "BAD_TOOLS")
    for choice in ("sometimes", 7, [], {"type": "function"}, {"type": "function", "function": {}}):
        yield refused("R23", chat(tools=[function()], tool_choice=choice), path=CHAT)
    missing = {"type": "function", "function": {"name": "g"}}
    yield refused("R23", chat(tools=[function()], tool_choice=missing), "BAD_TOOL_CHOICE", path=CHAT)
    yield refused("R23", chat(tool_choice="required"), "BAD_TOOL_CHOICE", path=CHAT)


def _models() -> Iterator[Row]:
    bodies = ((TEXT, text()), (CHAT, chat()), (ANSWER, {"input": "x"}), (TOKENIZE, {"prompt": "x"}))
    names = ("other", "T0", "../x", "..%2fx", "", "x" * 2**20, "a\u0000b", "t0\n", "\u202et0", "/etc/passwd", None)
    for path, body in bodies:
        for name in names:
            unknown = ((404, "model_not_found"),)
            yield Row(id="R21", path=path, body=encoded(body | {"model": name}), outcomes=unknown, param="model")
        for wrong in (7, [], {"a": 1}, True):
            yield refused("R21", body | {"model": wrong}, param="model", path=path)
    for name in ("other", "../x", "%2e%2e/x", "x" * 5000, "%00"):
        yield Row(id="R21", method="GET", path=f"/v1/models/{name}", outcomes=((404, "model_not_found"),))


def _answers() -> Iterator[Row]:
    for body in ({"input": ""}, {}, {"input": None}, {"input": 7}, {"input": []}, {"input": [7]}, {"input": [{}]},
                 {"input": [{"type": "item_reference", "id": "x"}]}, {"input": "x", "max_output_tokens": 0},
                 {"input": "x", "temperature": "hot"}, {"input": "x", "tools": [{"type": "web_search"}]}):  # fmt: skip
        yield refused("R16", body, path=ANSWER)
    for name, value in (("store", True), ("previous_response_id", "resp_1"), ("background", True),
                        ("truncation", "auto")):  # fmt: skip
        yield refused("R05", {"input": "x", name: value}, "UNSUPPORTED_PARAMETER", name, path=ANSWER)


def _tokens() -> Iterator[Row]:
    yield refused("R01", {}, path=TOKENIZE)
    yield refused("R01", {"prompt": "x", "messages": HI}, path=TOKENIZE)
    yield refused("R01", {"prompt": 7}, path=TOKENIZE)
    yield refused("R08", {"tokens": [-1]}, path="/detokenize")
    yield refused("R08", {"tokens": ["5"]}, path="/detokenize")
    yield refused("R08", {"tokens": [5] * (2**20 + 1)}, "JSON_LIMIT", path="/detokenize")
    yield refused("R02", {"prompt": "a" * 2**22}, "TEXT_LIMIT", "prompt", path=TOKENIZE)
    yield refused("R08", {"tokens": [2**31 - 1]}, "TOKEN_OUT_OF_RANGE", path="/detokenize")
    yield Row(id="R01", body=encoded({"input": "x"}), path="/v1/embeddings", outcomes=((404, "WRONG_RUNNER"),))
