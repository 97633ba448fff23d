"""`/openapi.json` says what the server does: what it calls good is answered, the rest is refused as it says."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from bestiary.serve.openai.app import make_app
from bestiary.serve.openai.options import ServeOptions
from bestiary.serve.openai.routes import ENDPOINTS

from .fake import FakeLLM

SEMANTIC = {
    "context_length_exceeded", "NOT_ALLOWED", "BAD_MESSAGES", "BAD_TOOLS", "BAD_TOOL_CHOICE", "BAD_SCHEMA",
    "BAD_REGEX", "TEMPLATE_ERROR", "TEMPLATE_LIMIT", "GRAMMAR_LIMIT", "NOTHING_TO_DRAW", "TOKEN_OUT_OF_RANGE",
    "LORA_PATH",
}  # fmt: skip
"""What no schema can say: that a prompt fits, that a call was made before it is answered, that a text is a grammar."""
TOGETHER = {"min_tokens", "n", "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar",
            "response_format", "response_format.json_schema.schema", "response_format.regex", "text.format.schema",
            "response_format.grammar", "tool_choice", "continue_final_message", "stop"}  # fmt: skip
"""Fields that are refused for what stands in others."""


def described():
    """What the server says of itself."""
    options = ServeOptions(web=False, allowed_hosts=("testserver",), lora_dir=Path(__file__).parent)
    return schemathesis.openapi.from_asgi("/openapi.json", make_app(FakeLLM(), options))


OPERATIONS = [each.ok() for each in described().get_all_operations()]
CASES = [
    pytest.param(each, mode, id=f"{each.label}, {mode.value}")
    for each in OPERATIONS
    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    if mode is GenerationMode.POSITIVE or each.body  # of the others nothing can be wrong
]


def hold(operation, mode, examples):
    """Requests that the description calls good, or bad, are answered as it says."""

    @given(operation.as_strategy(generation_mode=mode))
    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    def holds(case):
        check(case)

    holds()


@pytest.mark.parametrize(("operation", "mode"), CASES)
def test_it_keeps_its_word(operation, mode):
    hold(operation, mode, 8)


@pytest.mark.full
@pytest.mark.parametrize(("operation", "mode"), CASES)
def test_it_keeps_its_word_in_many_cases(operation, mode):
    hold(operation, mode, 100)


def check(case):
    logging.disable(logging.CRITICAL)
    try:
        response = case.call()
    finally:
        logging.disable(logging.NOTSET)
    excluded = []
    if response.status_code in (400, 403):
        error = response.json()["error"]
        if error["code"] in SEMANTIC or error["param"] in TOGETHER:
            excluded.append(positive_data_acceptance)
    case.validate_response(response, excluded_checks=excluded)


def test_everything_is_described(ask):
    document = ask("GET", "/openapi.json").json()
    described = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert described == {(each.method, each.path.replace(":path", "")) for each in ENDPOINTS}
    assert document["components"]["schemas"]["DetokenizeRequest"]["properties"]["tokens"]["items"]["maximum"] == 259


def test_keys_are_described_where_they_are_asked_for(ask):
    headers = {"authorization": "Bearer k"}
    document = ask("GET", "/openapi.json", headers=headers, api_keys=("k",)).json()
    assert document["paths"]["/v1/models"]["get"]["security"] == [{"key": []}]
    assert "security" not in document["paths"]["/health/live"]["get"]
    assert "401" in document["paths"]["/v1/models"]["get"]["responses"]
