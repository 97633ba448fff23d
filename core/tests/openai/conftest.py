"""The application over a fake model, called without a socket."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from bestiary.serve.openai.app import make_app
from bestiary.serve.openai.options import ServeOptions

from .fake import FakeLLM


@pytest.fixture
def llm() -> FakeLLM:
    return FakeLLM()


@asynccontextmanager
async def client(llm: FakeLLM, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application with these options."""
    transport = httpx.ASGITransport(make_app(llm, ServeOptions(**options)))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost:8000", timeout=20) as made:
        yield made


def events(response: httpx.Response) -> list[Any]:
    """The data of every event, as JSON where it is."""
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]
