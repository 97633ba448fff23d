"""Prompts: token ids of texts; a conversation as a text, by whose template and with which variables."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from bestiary.api.errors import RequestError
from bestiary.serve.text.chat_template import check_variables
from bestiary.serve.text.conversation import check_conversation

from .field_names import about_prompt

if TYPE_CHECKING:
    from .options import ServeOptions
    from .schemas.base import JsonObject
    from .service import Call, Service

_LONG_TEXT = 20_000
"""Characters from which on it is worth a look whether a text can fit."""
_TEXT_CHARS, _CHARS_PER_TOKEN = 2**20, 8
"""The longest text that is encoded, or as many characters as a context of usual text has at most, twice over. While it
is encoded, a text takes a hundred times its size."""


class Conversation(Protocol):
    """The fields of a request that decide about its prompt."""

    @property
    def chat_template(self) -> str | None: ...

    @property
    def chat_template_kwargs(self) -> JsonObject | None: ...

    @property
    def add_generation_prompt(self) -> bool | None: ...

    @property
    def continue_final_message(self) -> bool | None: ...


async def encoded(
    service: Service, field: str, prompts: list[str | list[int]], *, add_special_tokens: bool = True
) -> list[tuple[str | None, list[int]]]:
    """Each prompt's text, where it came as one, and its token ids. field: where they stand in the request."""
    found: list[tuple[str | None, list[int]]] = []
    for index, each in enumerate(prompts):
        if isinstance(each, str):
            await asyncio.sleep(0)  # many texts that are short take together as long as one that is not
            with about_prompt(field, index if len(prompts) > 1 else None, is_text=True):
                found.append((each, await ids_of(service, each, add_special_tokens=add_special_tokens)))
        else:
            found.append((None, each))
    return found


async def ids_of(service: Service, text: str, *, add_special_tokens: bool) -> list[int]:
    """The token ids of a prompt. Raises `CONTEXT_LENGTH_EXCEEDED` before time and memory are spent on what can be told
    from its length, and as `counted_ids`."""
    info = service.llm.info
    fewest = service.tokenizer.fewest_ids(text) if len(text) >= _LONG_TEXT else 0
    if info is not None and fewest > info.max_model_len:
        raise RequestError(
            f"the prompt has at least {fewest} tokens", code="CONTEXT_LENGTH_EXCEEDED", field="prompt", value=fewest,
            limit=f"the context length, {info.max_model_len} tokens",
        )  # fmt: skip
    return await counted_ids(service, text, add_special_tokens=add_special_tokens)


async def counted_ids(service: Service, text: str, *, add_special_tokens: bool) -> list[int]:
    """The token ids of a text, which may be more than the context takes. Raises `TEXT_LIMIT` for one so long that
    nobody should wait for it."""
    info = service.llm.info
    most = max(_TEXT_CHARS, 0 if info is None else info.max_model_len * _CHARS_PER_TOKEN)
    if len(text) > most:
        raise RequestError(
            "the text is too long to be made tokens of at once", code="TEXT_LIMIT", field="prompt", value=len(text),
            limit=f"at most {most} characters", fix="send it in parts",
        )  # fmt: skip
    return await service.llm.encode(text, add_special_tokens=add_special_tokens)


async def render(
    call: Call,
    request: Conversation,
    given: Callable[[], list[dict[str, Any]]],
    *,
    tools: list[dict[str, Any]] | None = None,
    **variables: Any,
) -> str:
    """The prompt.

    Args:
        given: makes the messages as data.
        variables: for the template, where the request's own do not say otherwise; None counts as not given.

    Raises:
        RequestError: NOT_ALLOWED for a template that the request brings, and what rendering raises.
    """
    service, own = call.service, dict(request.chat_template_kwargs or {})
    await call.apart(lambda: check_variables(own))
    options = {name: value for name, value in variables.items() if value is not None} | own
    if tools is not None:
        options["tools"] = tools
    continued = bool(request.continue_final_message)
    generate = not continued if request.add_generation_prompt is None else request.add_generation_prompt
    template = _template(service, request)

    def checking() -> tuple[list[dict[str, Any]], Any]:
        messages = given()
        if continued:
            _check_continued(messages, generate)
        developer = "developer" in (template or "")
        return check_conversation(messages, arguments=service.formats.arguments, developer=developer), messages[-1]

    checked, last = await call.apart(checking)
    text = await service.llm.render(checked, chat_template=template, add_generation_prompt=generate, **options)
    return _cut(text, last["content"]) if continued else text


def _template(service: Service, request: Conversation) -> str | None:
    options: ServeOptions = service.options
    if request.chat_template is None:
        return options.chat_template or service.tokenizer.chat_template
    if not options.allow_request_template:
        raise RequestError(
            "requests may not bring a chat template", code="NOT_ALLOWED", field="chat_template",
            fix="start with --allow-request-template",
        )  # fmt: skip
    return request.chat_template


def _check_continued(messages: list[dict[str, Any]], generate: bool) -> None:
    if generate:
        raise RequestError(
            "an answer is either begun or continued", field="continue_final_message",
            limit="not together with add_generation_prompt",
        )  # fmt: skip
    last = messages[-1]
    if last["role"] != "assistant" or not isinstance(last.get("content"), str) or not last["content"].strip():
        raise RequestError(
            "there is nothing to continue", code="BAD_MESSAGES", field="continue_final_message",
            limit="a last message of the assistant with a text",
        )  # fmt: skip


def _cut(text: str, last: str) -> str:
    """The prompt without what the template puts after the last message."""
    words = last.strip()
    at = text.rfind(words)
    if at < 0:
        raise RequestError(
            "the chat template does not write the last message as it is", code="TEMPLATE_ERROR",
            field="continue_final_message",
        )  # fmt: skip
    return text[: at + len(words)] + last[len(last.rstrip()) :]
