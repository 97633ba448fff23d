"""`POST /v1/chat/completions`."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bestiary.api.hooks import TextDelta, TextParser, ToolCallDelta
from bestiary.api.outputs import CompletionOutput, RequestOutput

from .documents import answer, much_to_write, off_the_loop, usage
from .generations import changes, failure, finished
from .logprobs import chat_logprobs, prompt_logprobs
from .parsing import Tooling
from .prompting import ids_of, render
from .schemas.base import plain
from .schemas.chat import ChatCompletionRequest
from .sse import DONE
from .streaming import Chunks, stream
from .structured import check_form, stated_form

if TYPE_CHECKING:
    from bestiary.serve.generation import Generation

    from .metrics import Clock
    from .service import Call, Target


@dataclass(slots=True)
class Chat:
    """An accepted conversation, and what its answer is made with."""

    call: Call
    request: ChatCompletionRequest
    target: Target
    id: str
    prompt: str
    tooling: Tooling
    generation: Generation
    clock: Clock

    @property
    def top(self) -> int | None:
        """How many likeliest tokens are shown in each place; None: no log-probabilities."""
        return self.request.top_logprobs or 0 if wants_logprobs(self.request) else None

    def parser(self) -> TextParser:
        return self.tooling.parser(self.prompt, continued_text(self.request))


async def chat_completions(call: Call) -> Any:
    """Answer a conversation, at once or as a stream of events."""
    request = await call.body(ChatCompletionRequest)
    target = call.service.target(request)
    chat = await _accept(call, request, target)
    if request.stream:
        return stream(call, [chat.generation], _events(chat))
    (output,) = await finished(call.http, [chat.generation], [chat.clock])
    return await off_the_loop(lambda: answer(call, _document(chat, output)), much_to_write([output], chat.top))


def _document(chat: Chat, output: RequestOutput) -> dict[str, Any]:
    document = chat.call.fields(chat.id, "chat.completion", chat.target.name) | {
        "choices": [_choice(chat, each) for each in output.outputs],
        "usage": usage([output]),
    }
    if chat.request.prompt_logprobs is not None:
        document["prompt_logprobs"] = prompt_logprobs(output.prompt_logprobs)
    if chat.request.return_token_ids:
        document["prompt_token_ids"] = output.prompt_token_ids
    return document


def wants_logprobs(request: ChatCompletionRequest) -> bool:
    return bool(request.logprobs or request.top_logprobs)


def continued_text(request: ChatCompletionRequest) -> str:
    """The beginning of the answer, where the last message is one."""
    last = request.messages[-1].content
    return last if request.continue_final_message and isinstance(last, str) else ""


async def _accept(call: Call, request: ChatCompletionRequest, target: Target) -> Chat:
    """Render, check and submit. Raises `RequestError`, or `EngineError` where the engine takes nothing now."""
    service, llm = call.service, call.service.llm
    llm.check_open(request.n or 1)
    tooling = await call.apart(
        lambda: Tooling.of(service.formats, plain(request.tools), plain(request.tool_choice))
    )  # fmt: skip
    call.warnings += tooling.warnings()
    effort = request.reasoning_effort
    prompt = await render(
        call, request, lambda: plain(request.messages), tools=tooling.shown, reasoning_effort=effort
    )  # fmt: skip
    token_ids = await ids_of(service, prompt, add_special_tokens=False)
    limit = request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens
    if request.top_logprobs and not request.logprobs:
        call.warnings.append("top_logprobs implies logprobs")
    form = await call.apart(
        lambda: tooling.form(
            stated_form(request), prompt, service.tokenizer.special_tokens,
            several=request.parallel_tool_calls is not False, continued=continued_text(request),
        )
    )  # fmt: skip
    if request.parallel_tool_calls is False and tooling.callable and not tooling.forced:
        call.warnings.append("parallel_tool_calls has no effect unless a call is required")
    sampling = request.sampling(
        service.options.sampling,
        max_tokens=limit,
        logprobs=request.top_logprobs or 0 if wants_logprobs(request) else None,
        structured_outputs=None if form is None else form.params,
        shown_token_ids=() if tooling.plain else service.mark_ids,
    )
    await check_form(llm, form, sampling)
    id_ = call.new_id("chatcmpl-")
    generation = llm.submit(
        id_, token_ids, sampling, prompt=prompt, priority=request.priority or 0,
        cache_salt=call.salt(request.cache_salt), lora_name=target.lora_name,
    )  # fmt: skip
    return Chat(call, request, target, id_, prompt, tooling, generation, service.metrics.accepted(len(token_ids)))


def _choice(chat: Chat, output: CompletionOutput) -> dict[str, Any]:
    parser = chat.parser()
    delta = parser.feed(output.text) + parser.finish()
    calls = [_call(chat, each) for each in delta.tool_calls]
    message: dict[str, Any] = {
        "role": "assistant",
        "content": delta.content or (None if calls else ""),
        "refusal": None,
    }
    if delta.reasoning:
        message["reasoning_content"] = delta.reasoning
    if calls:
        message["tool_calls"] = calls
    choice = {
        "index": output.index,
        "message": message,
        "logprobs": _logprobs(chat, output, 0),
        "finish_reason": _finish_reason(output, bool(calls)),
        "stop_reason": output.stop_reason,
    }
    if chat.request.return_token_ids:
        choice["token_ids"] = output.token_ids
    return choice


def _finish_reason(output: CompletionOutput, called: bool) -> str | None:
    return "tool_calls" if called and output.finish_reason == "stop" else output.finish_reason


def _call(chat: Chat, call: ToolCallDelta) -> dict[str, Any]:
    """A call, or its beginning."""
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": chat.call.new_id("call_"), "type": "function", "function": function}


def _logprobs(chat: Chat, output: CompletionOutput, start: int) -> dict[str, Any] | None:
    """Of the tokens from number `start` on."""
    if chat.top is None or output.logprobs is None:
        return None
    spelling = chat.call.service.spelling
    return chat_logprobs(spelling, output.token_ids[start:], output.logprobs[start:], chat.top)


async def _events(chat: Chat) -> AsyncGenerator[bytes, None]:
    fields = chat.call.fields(chat.id, "chat.completion.chunk", chat.target.name)
    chunks = Chunks(fields, chat.request.stream_options)
    output = chat.generation.output
    answers = [Answer(chat, each, chunks) for each in output.outputs]
    yield b"".join(each.opening() for each in answers)
    async for _ in changes([chat.generation], [chat.clock]):
        if piece := b"".join([each.news() for each in answers]):
            yield piece
    if (error := failure(chat.generation)) is not None:
        raise error
    if chunks.final_usage:
        yield chunks.usage(usage([output]))
    yield DONE


class Answer:
    """One answer as it is streamed: what of it was sent."""

    def __init__(self, chat: Chat, output: CompletionOutput, chunks: Chunks) -> None:
        self._chat, self._output, self._chunks = chat, output, chunks
        self._parser = chat.parser()
        self._chars = self._tokens = self._calls = 0
        self._over = False
        self._simple = (
            chat.tooling.plain and chat.top is None
            and not (chat.request.return_token_ids or chunks.continuous)
        )  # fmt: skip
        self._head = b'%d,"delta":{"content":' % output.index
        self._tail = b'},"logprobs":null,"finish_reason":null}]'

    def opening(self) -> bytes:
        return self._chunk({"role": "assistant", "content": ""})

    def news(self) -> bytes:
        """Chunks of what is new; the last holds the reason why the answer ended."""
        output = self._output
        if self._over or output.finish_reason == "error":
            return b""
        text = output.text[self._chars :]
        self._chars += len(text)
        if self._simple and output.finish_reason is None:
            return self._chunks.text(self._head, text, self._tail) if text else b""
        delta = self._parser.feed(text) if text else TextDelta()
        if output.finish_reason is None:
            return self._growth(delta)
        self._over = True
        last = self._growth(delta + self._parser.finish())
        reason = _finish_reason(output, self._calls > 0)
        return last + self._chunk({}, finish_reason=reason, stop_reason=output.stop_reason)

    def _growth(self, delta: TextDelta) -> bytes:
        """A chunk of new text, calls or tokens; nothing where there are none."""
        fresh = len(self._output.token_ids) - self._tokens
        shows_tokens = fresh and (self._chat.top is not None or self._chat.request.return_token_ids)
        if not delta and not shows_tokens:
            return b""
        fields: dict[str, Any] = {}
        if delta.content:
            fields["content"] = delta.content
        if delta.reasoning:
            fields["reasoning_content"] = delta.reasoning
        if delta.tool_calls:
            fields["tool_calls"] = [self._call(each) for each in delta.tool_calls]
        more: dict[str, Any] = {"logprobs": _logprobs(self._chat, self._output, self._tokens)}
        if self._chat.request.return_token_ids:
            more["token_ids"] = self._output.token_ids[self._tokens :]
        self._tokens += fresh
        return self._chunk(fields, **more)

    def _call(self, delta: ToolCallDelta) -> dict[str, Any]:
        if delta.name is None:
            return {"index": delta.index, "function": {"arguments": delta.arguments}}
        self._calls += 1
        return {"index": delta.index} | _call(self._chat, delta)

    def _chunk(self, delta: dict[str, Any], **more: Any) -> bytes:
        choice = {"index": self._output.index, "delta": delta, "logprobs": None, "finish_reason": None} | more
        shown = usage([self._chat.generation.output]) if self._chunks.continuous else None
        return self._chunks.choice(choice, shown)
