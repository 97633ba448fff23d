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

from . import semantic
from .fake import FakeLLM

pytest_plugins = ("schemathesis.pytest.plugin",)
"""(No other test needs it, and loading it takes a second.)"""
QUIET = list(HealthCheck)


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
        if error["code"] in semantic.CODES or error["param"] in semantic.TOGETHER:
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
