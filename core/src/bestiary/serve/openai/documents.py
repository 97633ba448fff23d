"""Documents as bytes: JSON responses, usage, and what both kinds of completions write alike."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from bestiary.api.outputs import RequestOutput

if TYPE_CHECKING:
    from starlette.responses import Response

    from .service import Call

Result = TypeVar("Result")

MANY = 20_000
"""Tokens, from which on a document takes long to write."""

encode = msgspec.json.Encoder().encode


async def off_the_loop(work: Callable[[], Result], much: bool) -> Result:
    """What `work` gives; where it is much, a thread does it, so that streams go on meanwhile."""
    return await asyncio.to_thread(work) if much else work()


def much_to_write(outputs: Iterable[RequestOutput], logprobs: int | None) -> bool:
    """Whether documents of `outputs` take long to make: they hold very many tokens or log-probabilities."""
    tokens = sum(len(each.token_ids) for output in outputs for each in output.outputs)
    return tokens * (1 + (logprobs or 0)) > MANY


def answer(call: Call, document: Any) -> Response:
    """A good answer, with what there is to warn of in its headers."""
    from starlette.responses import Response

    return Response(encode(document), 200, call.headers(), "application/json")


def usage(outputs: Iterable[RequestOutput]) -> dict[str, Any]:
    """Tokens of prompts and answers; each prompt counts once, however many answers it has."""
    prompt = generated = cached = 0
    for output in outputs:
        prompt += len(output.prompt_token_ids)
        generated += sum(len(each.token_ids) for each in output.outputs)
        cached += output.metrics.cached_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
