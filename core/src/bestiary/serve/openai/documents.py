"""Documents as bytes: JSON responses, usage, and what both kinds of completions write alike."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import msgspec

from bestiary.api.outputs import RequestOutput

if TYPE_CHECKING:
    from starlette.responses import Response

    from .service import Call

encode = msgspec.json.Encoder().encode


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
