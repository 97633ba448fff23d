"""`POST /v1/completions`: prompts as they stand, one or several, each with its `n` answers."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bestiary.api.errors import RequestError
from bestiary.api.outputs import CompletionOutput, RequestOutput

from .completion_document import CompletionWriter, parameters
from .documents import answer, much_to_write, off_the_loop, usage
from .field_names import about_prompt
from .generations import aborting, changes, failure, finished
from .logprobs import prompt_logprobs
from .prompting import encoded
from .schemas.base import MAX_BATCH
from .schemas.completions import CompletionRequest
from .sse import DONE
from .streaming import Chunks, stream
from .structured import check_form, stated_form

if TYPE_CHECKING:
    from bestiary.serve.generation import Generation

    from .metrics import Clock
    from .service import Call, Target


@dataclass(slots=True)
class Batch:
    """The accepted prompts of one request."""

    call: Call
    writer: CompletionWriter
    target: Target
    id: str
    generations: list[Generation]
    clocks: list[Clock]

    @property
    def request(self) -> CompletionRequest:
        return self.writer.request

    def fields(self) -> dict[str, Any]:
        """What every document of the answers begins with."""
        return self.call.fields(self.id, "text_completion", self.target.name)


async def completions(call: Call) -> Any:
    """Continue prompts, at once or as a stream of events."""
    request = await call.body(CompletionRequest)
    target = call.service.target(request)
    batch = await _accept(call, request, target)
    if request.stream:
        return stream(call, batch.generations, _events(batch))
    outputs = await finished(call.http, batch.generations, batch.clocks)
    return await off_the_loop(
        lambda: answer(call, batch.writer.document(batch.fields(), outputs)), much_to_write(outputs, request.logprobs)
    )  # fmt: skip


async def _accept(call: Call, request: CompletionRequest, target: Target) -> Batch:
    """Submit every prompt, or none. Raises `RequestError` or `EngineError`, naming the prompt where it may be."""
    llm, answers = call.service.llm, len(request.prompt) * (request.n or 1)
    if answers > MAX_BATCH:
        raise RequestError("too many answers in one request", field="n", value=answers, limit=f"{MAX_BATCH} together")
    llm.check_open(answers)
    form = stated_form(request)
    sampling = parameters(request, form, call.service.options.sampling)
    await check_form(llm, form, sampling)
    special = request.add_special_tokens is not False
    prompts = await encoded(call.service, "prompt", request.prompt, add_special_tokens=special)
    writer = CompletionWriter(request, lambda: call.service.spelling)
    batch = Batch(call, writer, target, call.new_id("cmpl-"), [], [])
    try:
        for index, (text, token_ids) in enumerate(prompts):
            with about_prompt("prompt", index if len(prompts) > 1 else None, is_text=text is not None):
                generation = llm.submit(
                    f"{batch.id}-{index}", token_ids, sampling, prompt=text, priority=request.priority or 0,
                    cache_salt=call.salt(request.cache_salt), lora_name=target.lora_name,
                )  # fmt: skip
            batch.generations.append(generation)
            batch.clocks.append(call.service.metrics.accepted(len(token_ids)))
    except BaseException:
        with aborting(batch.generations):
            raise
    return batch


async def _events(batch: Batch) -> AsyncGenerator[bytes, None]:
    chunks, each = Chunks(batch.fields(), batch.request.stream_options), batch.request.n or 1
    answers = [
        [Answer(batch, index * each + output.index, generation.output, output, chunks)
         for output in generation.output.outputs]
        for index, generation in enumerate(batch.generations)
    ]  # fmt: skip
    async for index in changes(batch.generations, batch.clocks):
        if piece := b"".join([answer.news() for answer in answers[index]]):
            yield piece
        if (error := failure(batch.generations[index])) is not None:
            raise error
    if chunks.final_usage:
        yield chunks.usage(usage([generation.output for generation in batch.generations]))
    yield DONE


class Answer:
    """One answer as it is streamed: what of it was sent."""

    def __init__(
        self, batch: Batch, index: int, request: RequestOutput, output: CompletionOutput, chunks: Chunks
    ) -> None:
        self._batch, self._index, self._request, self._output, self._chunks = batch, index, request, output, chunks
        wanted = batch.request
        self._chars = self._tokens = 0
        self._begun = self._over = False
        self._legacy = batch.writer.legacy()
        self._simple = self._legacy is None and not (wanted.return_token_ids or chunks.continuous)
        self._head, self._tail = b'%d,"text":' % index, b',"logprobs":null,"finish_reason":null}]'

    def news(self) -> bytes:
        """Chunks of what is new; the last holds the reason why the answer ended."""
        output = self._output
        if self._over or output.finish_reason == "error":
            return b""
        text = output.text[self._chars :]
        self._chars += len(text)
        if not self._begun:
            return self._beginning(text)
        if self._simple and output.finish_reason is None:
            return self._chunks.text(self._head, text, self._tail) if text else b""
        return self._growth(text, {})

    def _beginning(self, text: str) -> bytes:
        """The first chunk, with the prompt where it is echoed: its log-probabilities are there by the first token."""
        wanted = self._batch.request
        if not self._output.token_ids and self._output.finish_reason is None:
            return b""
        self._begun = True
        more: dict[str, Any] = {}
        if wanted.return_token_ids:
            more["prompt_token_ids"] = self._request.prompt_token_ids
        if wanted.prompt_logprobs is not None:
            more["prompt_logprobs"] = prompt_logprobs(self._request.prompt_logprobs)
        if not wanted.echo:
            return self._growth(text, more)
        prompt: dict[str, Any] = {"text": self._batch.writer.prompt_text(self._request), "logprobs": None}
        if self._legacy is not None and self._request.prompt_logprobs is not None:
            prompt["logprobs"] = self._legacy.piece(self._request.prompt_token_ids, self._request.prompt_logprobs)
        return self._chunk(prompt | more) + self._growth(text, {})

    def _growth(self, text: str, more: dict[str, Any]) -> bytes:
        output, start = self._output, self._tokens
        ended = output.finish_reason is not None
        shows_tokens = len(output.token_ids) > start and not self._simple
        if not (text or more or ended or shows_tokens):
            return b""
        self._tokens = len(output.token_ids)
        choice: dict[str, Any] = {"text": text, "logprobs": None} | more
        if self._legacy is not None and output.logprobs is not None:
            choice["logprobs"] = self._legacy.piece(output.token_ids[start:], output.logprobs[start:])
        if self._batch.request.return_token_ids:
            choice["token_ids"] = output.token_ids[start:]
        if ended:
            self._over = True
            choice |= {"finish_reason": output.finish_reason, "stop_reason": output.stop_reason}
        return self._chunk(choice)

    def _chunk(self, fields: dict[str, Any]) -> bytes:
        choice = {"index": self._index, "finish_reason": None} | fields
        shown = usage([self._request]) if self._chunks.continuous else None
        return self._chunks.choice(choice, shown)
