"""All bodies together are bounded, and whoever sends small ones does not notice."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from bestiary.api.errors import RequestError
from bestiary.serve.openai.app import make_app
from bestiary.serve.openai.body_budget import SMALL_BODY, BodyBudget
from bestiary.serve.openai.options import ServeOptions

from .conftest import JSON, check_refusal

PATH = "/v1/completions"


def test_what_is_held_counts_once_and_is_free_again():
    budget = BodyBudget(0, limit=1000)
    with budget.share() as share:
        for size in (10, SMALL_BODY, SMALL_BODY + 400, SMALL_BODY + 900):
            share.grow(size)
        assert budget.held == 900
        with budget.share() as other:
            other.grow(SMALL_BODY)
            with pytest.raises(RequestError, match="too many large bodies"):
                other.grow(SMALL_BODY + 101)
            other.grow(SMALL_BODY + 100)
        assert budget.held == 900
    assert budget.held == 0


def test_the_largest_body_has_room():
    with BodyBudget(5 * 10**6, limit=1000).share() as share:
        share.grow(5 * 10**6)


def test_beyond_the_budget_large_bodies_are_shed_and_small_ones_answered(llm):
    app = make_app(llm, ServeOptions())
    budget = app.state.service.bodies = BodyBudget(0, limit=3 * SMALL_BODY)
    large = json.dumps({"prompt": "x", "user": "u" * 3 * SMALL_BODY}).encode()

    async def run():
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def slowly():
            yield large[: 2 * SMALL_BODY]
            begun.set()
            await go_on.wait()
            yield large[2 * SMALL_BODY :]

        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://localhost", event_hooks={"response": [check_refusal]}
        ) as http:
            first = asyncio.create_task(http.post(PATH, content=slowly(), headers=JSON))
            await begun.wait()
            second = await http.post(PATH, content=large, headers=JSON)
            small = await http.post(PATH, json={"prompt": "x"})
            go_on.set()
            first = await first
            return first, second, small, await http.post(PATH, content=large, headers=JSON)

    first, second, small, later = asyncio.run(run())
    assert [each.status_code for each in (first, second, small, later)] == [200, 503, 200, 200]
    assert second.json()["error"]["code"] == "BODIES_LIMIT"
    assert budget.held == 0
    assert app.state.service.metrics.outcomes["shed"] == 1
