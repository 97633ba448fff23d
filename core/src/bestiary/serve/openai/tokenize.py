"""`POST /tokenize`, `POST /detokenize` and `GET /tokenizer_info`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from bestiary.api.errors import RequestError

from .documents import MANY, answer, off_the_loop
from .parsing import Tooling
from .prompting import counted_ids, render
from .schemas.base import plain
from .schemas.tokenize import DetokenizeRequest, TokenizeRequest

if TYPE_CHECKING:
    from .service import Call


async def tokenize(call: Call) -> Any:
    """The ids of a text, or of a conversation as the chat template writes it."""
    request = await call.body(TokenizeRequest)
    service = call.service
    service.target(request)
    if request.messages is None:
        text, special = request.prompt or "", True
    else:
        tools = (await call.apart(lambda: Tooling.of(service.formats, plain(request.tools), None))).shown
        text, special = await render(call, request, lambda: plain(request.messages), tools=tools), False
    if request.add_special_tokens is not None:
        special = request.add_special_tokens
    tokens = await counted_ids(service, text, add_special_tokens=special)

    def written() -> Any:
        names = [service.tokenizer.token_text(token) for token in tokens] if request.return_token_strs else None
        longest = None if service.llm.info is None else service.llm.info.max_model_len
        return answer(call, {"count": len(tokens), "max_model_len": longest, "tokens": tokens, "token_strs": names})

    return await off_the_loop(written, len(tokens) > MANY)


async def detokenize(call: Call) -> Any:
    """The text of ids, special tokens included; those that only the model has, and not the tokenizer, have none."""
    request = await call.body(DetokenizeRequest)
    service = call.service
    service.target(request)
    size = service.tokenizer.vocab_size if service.llm.info is None else service.llm.info.vocab_size
    for index, token in enumerate(request.tokens):
        if token >= size:
            raise RequestError(
                "no token of this model", code="TOKEN_OUT_OF_RANGE", field=f"tokens[{index}]", value=token,
                limit=f"an integer from 0 to {size - 1}",
            )  # fmt: skip
    text = await asyncio.to_thread(service.tokenizer.decode, request.tokens, False)
    return answer(call, {"prompt": text})


async def tokenizer_info(call: Call) -> Any:
    """What a client that does without a tokenizer of its own must know, by the names that evaluation suites expect."""
    service = call.service
    tokenizer = service.tokenizer
    template = service.options.chat_template or tokenizer.chat_template
    return answer(call, {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token, "chat_template": template})
