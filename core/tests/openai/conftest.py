"""The application over a fake model, called without a socket."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from bestiary.serve.openai.app import make_app
from bestiary.serve.openai.options import ServeOptions
from bestiary.serve.openai.routes import ENDPOINTS
from bestiary.serve.text.parsers.formats import AnswerFormats

from .fake import FakeLLM

JSON = {"content-type": "application/json"}
HEAD = {"authorization", "content-encoding", "content-type", "host", "method", "model", "origin", "path", "version"}
LEAKS = re.compile(r"/(?:home|root|tmp|usr|work|opt|etc|proc)/|0x[0-9a-f]{6,}|Traceback|<class|File \"|\.py\b")


@pytest.fixture
def llm() -> FakeLLM:
    return FakeLLM()


@asynccontextmanager
async def client(
    llm: FakeLLM, formats: AnswerFormats | None = None, **options: Any
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application with these options; every refusal that it receives is checked."""
    transport = httpx.ASGITransport(make_app(llm, ServeOptions(**options), formats))
    hooks = {"response": [check_refusal]}
    async with httpx.AsyncClient(
        transport=transport, base_url="http://localhost:8000", timeout=20, event_hooks=hooks
    ) as made:
        yield made


@pytest.fixture
def ask(llm: FakeLLM) -> Callable[..., httpx.Response]:
    """One request to an application of its own: ``ask("POST", path, json, headers=…, option=…)``."""

    def call(method: str, path: str, json: Any = None, *, headers: Any = None, content: Any = None, **options: Any):
        async def run() -> httpx.Response:
            async with client(llm, **options) as http:
                return await http.request(method, path, json=json, headers=headers, content=content)

        return asyncio.run(run())

    return call


async def check_refusal(response: httpx.Response) -> None:
    """Whatever is refused says so in OpenAI's shape, and tells nothing of this machine."""
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,64}", response.headers["x-request-id"])
    if (
        response.status_code < 400
        or response.request.url.path.startswith("/health")
        or response.request.method == "HEAD"
    ):
        return
    await response.aread()
    error = response.json()["error"]
    assert {"message", "type", "param", "code", "request_id"} <= set(error)
    assert error["message"] and error["request_id"] == response.headers["x-request-id"]
    assert not LEAKS.search(response.text), response.text
    assert len(response.text) < 8192
    if error["code"] != "UNKNOWN_FIELD":
        check_field(response.request.url.path, error["param"])
    if response.status_code == 503:
        assert int(response.headers["retry-after"]) > 0


def check_field(path: str, param: str | None) -> None:
    """What an error names stands in the request: in its body, or in its head."""
    model = next((each.takes for each in ENDPOINTS if each.path == path), None)
    fields = {} if model is None else model.model_fields
    names = {field.alias or name for name, field in fields.items()} | HEAD | {"body"}
    assert param is None or re.split(r"[.\[]", param)[0] in names, (path, param)


def events(response: httpx.Response) -> list[Any]:
    """The data of every event, as JSON where it is."""
    assert response.headers["content-type"].startswith("text/event-stream")
    return parse_events(response.text)


def parse_events(text: str) -> list[Any]:
    blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    data = [line.removeprefix("data: ") for block in blocks for line in block.split("\n") if line.startswith("data: ")]
    assert len(data) == len(blocks)
    return [each if each == "[DONE]" else json.loads(each) for each in data]
