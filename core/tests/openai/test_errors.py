"""Errors as bodies: what they say, and what they keep to themselves."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from bestiary.api import catalogue
from bestiary.api.errors import BadAdapter, EngineError, RequestError
from bestiary.serve.openai.errors import document, from_answer, status_of
from bestiary.serve.openai.schemas.base import ErrorDocument

SECRETS = [
    f"{tempfile.gettempdir()}/model/adapter_config.json", str(Path.home()), os.getcwd(), f"at {hex(id(SystemExit))}",
]  # fmt: skip


@pytest.mark.parametrize("secret", SECRETS, ids=range(len(SECRETS)))
def test_places_of_this_machine_are_taken_out(secret):
    error = BadAdapter(f"{secret} is damaged", field=secret, limit=secret, details=[f"see {secret}."], fix=secret)
    body = document(error, "id")
    assert secret.removeprefix("at ") not in str(body) and os.getcwd() not in str(body)
    ErrorDocument.model_validate(body)


@pytest.mark.parametrize("text", ["/v1/completions", "at /properties/a/$ref", "and/or", "http://x/y", "1/2", "0x12"])
def test_what_only_looks_like_it_stays(text):
    assert text in document(RequestError(text), "id")["error"]["message"]


def test_of_a_failure_clients_learn_little():
    error = EngineError("the engine process 4711 was killed by SIGKILL", code="ENGINE_DEAD", value=-9, fix="look")
    body = document(error, "id")["error"]
    assert "4711" not in str(body) and set(body) == {"message", "type", "param", "code", "request_id"}
    assert (body["code"], body["type"], status_of(error)) == ("engine_dead", "server_error", 503)


@pytest.mark.parametrize(
    ("said", "code", "status"),
    [
        ("numerical", "NUMERICAL", 500),
        ("ENGINE_DEAD: it is gone", "ENGINE_DEAD", 503),
        ("GRAMMAR_LIMIT: too much: of it\n", "GRAMMAR_LIMIT", 400),
        ("", "NUMERICAL", 500),
    ],
)
def test_the_last_words_of_an_answer(said, code, status):
    error = from_answer(said)
    assert (error.error_code, status_of(error)) == (code, status)
    assert ("of it" in document(error, "id")["error"]["message"]) == (status == 400)


def test_every_code_of_the_catalogue_has_a_body():
    for code in catalogue.entries():
        for kind in (RequestError, EngineError):
            ErrorDocument.model_validate(document(kind("it is so", code=code), "id"))
