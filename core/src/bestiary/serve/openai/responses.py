"""`POST /v1/responses`: one answer to an input that holds the whole conversation. Nothing is kept."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bestiary.api.errors import BestiaryError, EngineError
from bestiary.api.hooks import TextDelta, TextParser
from bestiary.api.outputs import CompletionOutput
from bestiary.api.sampling import SamplingParams

from .documents import answer, encode, much_to_write, off_the_loop
from .errors import document as error_document
from .generations import changes, failure, finished
from .logprobs import chat_logprobs
from .parsing import Tooling
from .prompting import ids_of, render
from .response_input import as_messages, as_tools
from .response_items import Event, Items
from .schemas.base import plain
from .schemas.responses import ResponsesRequest
from .sse import event
from .streaming import Told, stream
from .structured import check_form, text_form

if TYPE_CHECKING:
    from bestiary.serve.generation import Generation

    from .metrics import Clock
    from .service import Call, Target


@dataclass(slots=True)
class Response:
    """An accepted request, and what its answer is made with. There is one answer."""

    call: Call
    request: ResponsesRequest
    target: Target
    id: str
    generation: Generation
    clock: Clock
    parser: TextParser
    items: Items

    @property
    def output(self) -> CompletionOutput:
        return self.generation.output.outputs[0]

    def document(self, status: str, error: BestiaryError | None = None) -> dict[str, Any]:
        """The response as it stands."""
        return _document(self, status, error)

    def logprobs(self, start: int) -> list[dict[str, Any]]:
        """Of the tokens from number `start` on, where they were asked for."""
        if self.request.top_logprobs is None or self.output.logprobs is None:
            return []
        ids, entries = self.output.token_ids[start:], self.output.logprobs[start:]
        found: list[dict[str, Any]] = chat_logprobs(
            self.call.service.spelling, ids, entries, self.request.top_logprobs
        )["content"]  # fmt: skip
        return found


async def responses(call: Call) -> Any:
    """Answer an input, at once or as a stream of events."""
    request = await call.body(ResponsesRequest)
    target = call.service.target(request)
    response = await _accept(call, request, target)
    if request.stream:
        return stream(call, [response.generation], _events(response))
    await finished(call.http, [response.generation], [response.clock])
    much = much_to_write([response.generation.output], request.top_logprobs)
    return await off_the_loop(lambda: answer(call, _whole(response)), much)


def _whole(response: Response) -> dict[str, Any]:
    delta = response.parser.feed(response.output.text) + response.parser.finish()
    _exhaust(response.items.feed(delta, response.logprobs(0)))
    _exhaust(response.items.close(complete=_status(response) == "completed"))
    return response.document(_status(response))


async def _accept(call: Call, request: ResponsesRequest, target: Target) -> Response:
    service = call.service
    service.llm.check_open()
    tooling = await call.apart(lambda: Tooling.of(service.formats, as_tools(request), plain(request.tool_choice)))
    call.warnings += tooling.warnings()
    effort = None if request.reasoning is None else request.reasoning.effort
    prompt = await render(
        call, _Template(request), lambda: as_messages(request), tools=tooling.shown, reasoning_effort=effort
    )  # fmt: skip
    token_ids = await ids_of(service, prompt, add_special_tokens=False)
    several = request.parallel_tool_calls is not False
    form = await call.apart(
        lambda: tooling.form(text_form(request), prompt, service.tokenizer.special_tokens, several=several)
    )
    stated = {"temperature": request.temperature, "top_p": request.top_p, "seed": request.seed}
    sampling = SamplingParams(
        **{**service.options.sampling, **{name: value for name, value in stated.items() if value is not None}},
        max_tokens=request.max_output_tokens, logprobs=request.top_logprobs,
        structured_outputs=None if form is None else form.params,
        shown_token_ids=() if tooling.plain else service.mark_ids,
    )  # fmt: skip
    await check_form(service.llm, form, sampling)
    id_ = call.new_id("resp_")
    generation = service.llm.submit(
        id_, token_ids, sampling, prompt=prompt, cache_salt=call.salt(request.cache_salt), lora_name=target.lora_name
    )
    parser = tooling.parser(prompt)
    clock = service.metrics.accepted(len(token_ids))
    return Response(call, request, target, id_, generation, clock, parser, Items(call))


class _Template:
    """This endpoint's requests say little about their prompt."""

    chat_template = None
    add_generation_prompt = None
    continue_final_message = None

    def __init__(self, request: ResponsesRequest) -> None:
        self.chat_template_kwargs = request.chat_template_kwargs


def _status(response: Response) -> str:
    return "incomplete" if response.output.finish_reason == "length" else "completed"


def _document(response: Response, status: str, error: BestiaryError | None) -> dict[str, Any]:
    request, call = response.request, response.call
    defaults = call.service.options.sampling
    over = status != "in_progress"
    shown = None if error is None else error_document(error, call.id)["error"]
    return {
        "id": response.id,
        "object": "response",
        "created_at": call.created,
        "status": status,
        "background": False,
        "error": None if shown is None else {"code": shown["code"], "message": shown["message"]},
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "model": response.target.name,
        "output": response.items.documents if over else [],
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": None if request.reasoning is None else request.reasoning.effort, "summary": None},
        "store": False,
        "temperature": defaults.get("temperature", 1.0) if request.temperature is None else request.temperature,
        "text": {"format": {"type": "text"}} if request.text is None else plain(request.text),
        "tool_choice": plain(request.tool_choice) or "auto",
        "tools": plain(request.tools or []),
        "top_p": defaults.get("top_p", 1.0) if request.top_p is None else request.top_p,
        "top_logprobs": request.top_logprobs or 0,
        "truncation": "disabled",
        "usage": _usage(response) if over else None,
        "metadata": request.metadata if isinstance(request.metadata, dict) else {},
    }


def _usage(response: Response) -> dict[str, Any]:
    output, reasoning = response.generation.output, response.items.reasoning
    prompt, generated = len(output.prompt_token_ids), len(response.output.token_ids)
    reasoned = len(response.call.service.tokenizer.encode(reasoning, False)) if reasoning else 0
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": output.metrics.cached_tokens},
        "output_tokens": generated,
        "output_tokens_details": {"reasoning_tokens": min(reasoned, generated)},
        "total_tokens": prompt + generated,
    }


async def _events(response: Response) -> AsyncGenerator[bytes, None]:
    """The stream: it ends with response.completed, response.incomplete or response.failed."""
    numbered = _Numbered()
    begun = response.document("in_progress")
    yield numbered.bytes([("response.created", {"response": begun}), ("response.in_progress", {"response": begun})])
    try:
        async for piece in _growth(response, numbered):
            yield piece
    except EngineError as error:
        yield numbered.bytes([("response.failed", {"response": response.document("failed", error)})])
        raise Told from error
    status = _status(response)
    last = [*response.items.close(complete=status == "completed")]
    yield numbered.bytes([*last, (f"response.{status}", {"response": response.document(status)})])


async def _growth(response: Response, numbered: _Numbered) -> AsyncGenerator[bytes, None]:
    chars = tokens = 0
    async for _ in changes([response.generation], [response.clock]):
        output = response.output
        if (error := failure(response.generation)) is not None:
            raise error
        text, logprobs = output.text[chars:], response.logprobs(tokens)
        chars, tokens = len(output.text), len(output.token_ids)
        delta = response.parser.feed(text) if text else TextDelta()
        if output.finish_reason is not None:
            delta += response.parser.finish()
        if piece := numbered.bytes(response.items.feed(delta, logprobs)):
            yield piece


class _Numbered:
    """Numbers events in the order in which they are sent."""

    def __init__(self) -> None:
        self._next = 0

    def bytes(self, events: Iterable[Event]) -> bytes:
        found = []
        for name, fields in events:
            data = {"type": name, "sequence_number": self._next} | fields
            found.append(event(encode(data), name))
            self._next += 1
        return b"".join(found)


def _exhaust(events: Iterator[Event]) -> None:
    for _ in events:
        pass
