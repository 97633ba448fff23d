"""Requests as bytes, answers as documents: what is served, and that whatever is sent gets an answer."""

import json
import threading

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from bestiary import LLM, SamplingParams
from bestiary.api.errors import EngineError
from bestiary.serve.completions import MAX_BODY_BYTES, respond

WORDS = {"prompt": [4, 5, 6], "max_tokens": 3, "temperature": 0}


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(5)
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, vocab_size=90,
        max_position_embeddings=64, initializer_range=0.3, eos_token_id=2,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return LLM(str(folder), dtype="float32", skip_tokenizer_init=True, progress=False)


def ask(llm, body, method="POST", path="/v1/completions", gone=None):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    reply = respond(llm, "tiny", method, path, data, gone or threading.Event())
    json.dumps(reply.document, allow_nan=False)  # can be sent
    return reply


def test_an_answer_is_that_of_generate(llm):
    expected = llm.generate([[4, 5, 6]], SamplingParams(max_tokens=3, temperature=0), use_tqdm=False)[0].outputs[0]
    (choice,) = ask(llm, WORDS | {"return_token_ids": True}).document["choices"]
    assert (choice["token_ids"], choice["finish_reason"]) == (expected.token_ids, expected.finish_reason)


def test_sampling_parameters_arrive(llm):
    given = {"model": "tiny", "stream": False, "n": 2, "return_token_ids": True, "logit_bias": {"7": 100}}
    reply = ask(llm, WORDS | given)
    assert reply.status == 200, reply.document
    assert [choice["token_ids"] for choice in reply.document["choices"]] == [[7, 7, 7]] * 2
    assert reply.document["choices"][0]["finish_reason"] == "length"
    usage = reply.document["usage"]
    assert [usage[name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")] == [3, 6, 9]
    assert reply.document["model"] == "tiny"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", "body"),
        (b"[1]", "body"),
        (b"\xff", "body"),
        (b"[" * 100_000, "body"),
        (b'{"prompt": [1], "prompt": [2]}', "body"),
        ({}, "prompt"),
        ({"prompt": [True]}, "prompt[0]"),
        ({"prompt": [[1], [2]]}, "prompt"),
        ({"prompt": [1], "max_tokns": 3}, "max_tokns"),
        ({"prompt": [1], "stream": True}, "stream"),
        ({"prompt": [1], "temperature": -1}, "temperature"),
        ({"prompt": [1], "logit_bias": {"\u0661": 1}}, "logit_bias.?"),
        ({"prompt": [90]}, "prompt_token_ids[0]"),
        ({"prompt": "text"}, "skip_tokenizer_init"),
        ({"prompt": [1], "logprobs": 1}, "skip_tokenizer_init"),
    ],
)
def test_a_bad_request_is_refused_by_field(llm, body, field):
    reply = ask(llm, body)
    assert (reply.status, reply.document["error"]["param"]) == (400, field)
    assert not llm.engine.has_unfinished_requests


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/health", b"", 200),
        ("GET", "/", b"", 404),
        ("GET", "/v1/completions", b"", 405),
        ("POST", "/v1/completions", b" " * (MAX_BODY_BYTES + 1), 413),
        ("POST", "/v1/completions", b'{"prompt": [1], "model": "other"}', 404),
    ],
)
def test_every_status(llm, method, path, body, status):
    reply = ask(llm, body, method, path)
    assert reply.status == status
    assert status == 200 or set(reply.document) == {"error"}


def test_nobody_waits_so_the_answer_is_not_finished(llm):
    gone = threading.Event()
    gone.set()
    reply = ask(llm, {"prompt": [4], "max_tokens": 50, "ignore_eos": True}, gone=gone)
    assert reply.document["usage"]["completion_tokens"] < 50
    assert not llm.engine.has_unfinished_requests


def test_a_model_that_fails_is_an_error_without_a_traceback(llm, monkeypatch):
    def failing(*args, **kwargs):
        raise ZeroDivisionError("in the plugin")

    with monkeypatch.context() as patch:
        patch.setattr(type(llm.engine.executor.runner.model), "forward", failing)
        reply = ask(llm, WORDS)
    assert (reply.status, reply.document["error"]["code"]) == (503, "MODEL_FAILED")
    assert "Traceback" not in json.dumps(reply.document)


def test_a_dead_engine_is_not_healthy(llm, monkeypatch):
    monkeypatch.setattr(llm.engine, "dead", EngineError("rank 1 was lost", code="RANK_DIED"))
    assert ask(llm, b"", "GET", "/health").status == 503
    assert ask(llm, WORDS).document["error"]["code"] == "RANK_DIED"


@given(
    st.dictionaries(
        st.sampled_from(["prompt", "max_tokens", "temperature", "stop", "n", "seed", "logit_bias", "logprobs", "x"]),
        st.none()
        | st.booleans()
        | st.integers(-3, 3)
        | st.floats()
        | st.text(max_size=3)
        | st.lists(st.integers(0, 9)),
        max_size=4,
    )
)
@settings(max_examples=60, deadline=None)
def test_whatever_is_sent_is_answered(llm, document):
    reply = ask(llm, {"max_tokens": 2} | document)
    assert reply.status in (200, 400)
    assert reply.status == 200 or reply.document["error"]["code"] != "INTERNAL"
