"""Whatever the layers below call a field, a client reads the name that it knows."""

from __future__ import annotations

import pytest

from bestiary.api import catalogue
from bestiary.api.errors import RequestError
from bestiary.serve.openai.field_names import NAMES
from bestiary.serve.openai.routes import ENDPOINTS
from bestiary.serve.openai.schemas.chat import ChatCompletionRequest

from .conftest import check_field

BODIES = {
    "/v1/chat/completions": ({"messages": [{"role": "user", "content": "Hi"}], "max_completion_tokens": 3}, "messages"),
    "/v1/completions": ({"prompt": ["Hi", "Ho"]}, "prompt"),
    "/v1/responses": ({"input": "Hi"}, "input"),
    "/v1/embeddings": ({"input": ["Hi", "Ho"]}, "input"),
}
LOADING = [each for each in ENDPOINTS if each.loads and each.path in BODIES]
CODES = [entry.code for entry in catalogue.entries().values() if entry.area in ("request", "adapter", "engine")]


def test_every_endpoint_that_asks_the_engine_is_tried():
    wanted = {each.path for each in ENDPOINTS if each.loads and each.takes is not None}
    assert {path for path in wanted if "lora" not in path} == set(BODIES)


@pytest.mark.parametrize("endpoint", LOADING, ids=lambda each: each.path)
@pytest.mark.parametrize("field", [*NAMES, "prompt_token_ids[3]"])
def test_fields_of_the_engine_are_told_as_fields_of_the_request(ask, llm, endpoint, field):
    body, prompt = BODIES[endpoint.path]
    llm.refuse = RequestError("no", code="BAD_REQUEST", field=field)
    error = ask("POST", endpoint.path, body).json()["error"]
    check_field(endpoint.path, error["param"])
    if field.startswith("prompt"):
        assert error["param"] == prompt


@pytest.mark.parametrize("code", CODES)
def test_under_every_code(ask, llm, code):
    llm.refuse = RequestError("no", code=code, field="prompt_token_ids[0]", value=9)
    for path, (body, prompt) in BODIES.items():
        error = ask("POST", path, body).json()["error"]
        assert error["param"] == prompt and "prompt_token_ids" not in error["message"], (path, error)


def test_what_a_request_states_is_named_first():
    llm_names = NAMES["max_tokens"]
    assert [name for name in llm_names if name in ChatCompletionRequest.model_fields] == [
        "max_completion_tokens",
        "max_tokens",
    ]
