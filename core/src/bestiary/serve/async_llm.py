"""`AsyncLLM`: a model in an engine process of its own, for a program that must stay responsive: a server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from bestiary.api.errors import EngineError, RequestError
from bestiary.api.lora import LoRAInfo, LoRARequest
from bestiary.api.pooling import PoolingParams
from bestiary.api.sampling import SamplingParams
from bestiary.engine.arguments import EngineArgs
from bestiary.engine.heap import trim
from bestiary.engine.notices import notice
from bestiary.engine.process.handle import Spawned, spawn
from bestiary.engine.process.messages import (
    Answer,
    EngineStats,
    FromEngine,
    Loaded,
    ModelInfo,
    Stepped,
)
from bestiary.engine.process.supervisor import Restart, State, Supervisor
from bestiary.engine.sequence import SequenceUpdate

from .forms import Facts, Forms
from .generation import Accepted, Generation, PoolingGeneration
from .outputs import OutputProcessor
from .remote import RemoteEngine
from .remote_adapters import RemoteAdapters
from .text.loading import read_tokenizer
from .text.template_process import TemplateProcess

if TYPE_CHECKING:
    from .text.tokenizer import Tokenizer

_LONG_TEXT = 20_000
"""Characters from which on a text is encoded off the event loop."""
_LONG_TEXTS = 2
"""Such texts at a time: while it is encoded, one takes a hundred times its size."""
_HUGE_TEXT = 200_000
"""Characters from which on what it took is given back at once."""


class AsyncLLM:
    """A model behind an engine process. Everything is called from one event loop, and nothing blocks it.

        llm = await AsyncLLM.start(EngineArgs(model="smollm2"))
        await llm.wait_ready()
        async for output in llm.submit("1", await llm.encode("Hello"), SamplingParams(max_tokens=8)):
            print(output.outputs[0].text)

    If the engine process dies, every request it had ends with an error, and another is started.

    Attributes:
        tokenizer: of the model; read here, beside the engine's start. None under `skip_tokenizer_init`.
        draining: no new requests are taken.
    """

    def __init__(
        self,
        args: EngineArgs,
        tokenizer: Tokenizer | None,
        *,
        restart: Restart = "on-failure",
        unready_after: float = 30.0,
        on_finish: Callable[[Accepted[Any]], None] = lambda generation: None,
    ) -> None:
        self.args, self.tokenizer = args, tokenizer
        self.draining = False
        self._long_texts = asyncio.Semaphore(_LONG_TEXTS)
        self._on_finish = on_finish
        self._supervisor = Supervisor(
            replace(args, max_queue=None),  # counted here, where it is known at once
            tokenizer.eos_token_ids if tokenizer else frozenset(),
            restart=restart,
            unready_after=unready_after,
            on_message=self._take,
            on_lost=self._lost,
            on_change=self._changed,
        )
        self._forms = Forms(args, tokenizer, self._facts)
        self._engine = RemoteEngine(self._supervisor, self._forms)
        self._outputs = OutputProcessor(self._engine, tokenizer)
        self._live: dict[str, Accepted[Any]] = {}
        self._answers = 0
        self._templates = TemplateProcess()
        self._stats = EngineStats()
        self._adapters = RemoteAdapters(self._supervisor)
        self._change = asyncio.Condition()

    @classmethod
    async def start(cls, args: EngineArgs, spawned: Spawned | None = None, **options: Any) -> AsyncLLM:
        """Start the engine process and, meanwhile, read the tokenizer; `wait_ready` waits for the model.

        Args:
            args: a model of one machine. spawned: an engine process that was started before this could be called.
            options: as for the constructor.

        Raises:
            ModelError, UsageError: the model's small files cannot be read.
        """
        ahead = spawned or spawn()
        try:
            tokenizer = await asyncio.to_thread(read_tokenizer, args)
            llm = cls(args, tokenizer, **options)
        except BaseException:
            ahead.discard()
            raise
        await llm._supervisor.start(ahead)
        return llm

    # --- how it is --------------------------------------------------------------------------------------------------

    @property
    def state(self) -> State | Literal["draining"]:
        found = self._supervisor.state
        return "draining" if self.draining and found in ("ready", "stalled") else found

    @property
    def error(self) -> EngineError | None:
        """Why the last engine process is gone."""
        return self._supervisor.error

    @property
    def info(self) -> ModelInfo | None:
        """What was loaded; None while nothing is."""
        return self._supervisor.info

    @property
    def phases(self) -> Mapping[str, float]:
        """What the engine's start spent its time on, in seconds."""
        return self._supervisor.phases

    @property
    def restarts(self) -> int:
        return self._supervisor.restarts

    @property
    def engine_pid(self) -> int | None:
        return self._supervisor.pid

    @property
    def num_live(self) -> int:
        """Answers accepted and not ended."""
        return self._answers

    def stats(self) -> EngineStats:
        """As the engine last told."""
        return self._stats

    async def wait_ready(self) -> ModelInfo:
        """Until requests can be answered. Raises the error of an engine that will not come to that."""
        async with self._change:
            await self._change.wait_for(lambda: self._supervisor.state in ("ready", "failed", "closed"))
        if self.info is None:
            raise self.error or EngineError("the engine is closed", code="CLOSED")
        return self.info

    async def changes(self) -> State:
        """The next state."""
        async with self._change:
            await self._change.wait()
        return self._supervisor.state

    # --- requests ---------------------------------------------------------------------------------------------------

    def submit(
        self,
        request_id: str,
        prompt_token_ids: Sequence[int],
        sampling: SamplingParams,
        *,
        prompt: str | None = None,
        priority: int = 0,
        cache_salt: str | None = None,
        lora_name: str | None = None,
    ) -> Generation:
        """Accept a request. It will end, in whatever way; see `Generation`.

        Raises:
            RequestError: it can never run, or not now (QUEUE_FULL, ENGINE_NOT_READY, SERVER_SHUTDOWN).
        """
        adapter = self._accept(request_id, sampling.n, lora_name)
        if sampling.stop_strings and self.tokenizer is None:
            raise RequestError("stop strings need a tokenizer", field="stop", fix="without --skip-tokenizer-init")
        output = self._outputs.add(
            request_id, prompt, prompt_token_ids, sampling,
            priority=priority, cache_salt=cache_salt, lora_request=adapter,
        )  # fmt: skip
        generation = Generation(output, self._abort)
        self._live[request_id] = generation
        self._answers += sampling.n
        return generation

    def submit_pooling(
        self,
        request_id: str,
        prompt_token_ids: Sequence[int],
        pooling: PoolingParams,
        *,
        prompt: str | None = None,
        priority: int = 0,
        cache_salt: str | None = None,
        lora_name: str | None = None,
    ) -> PoolingGeneration:
        """The same for a vector of a prompt, of a model that makes them (`ModelInfo.pooling`)."""
        adapter = self._accept(request_id, 1, lora_name)
        output = self._outputs.add_pooling(
            request_id, prompt, prompt_token_ids, pooling,
            priority=priority, cache_salt=cache_salt, lora_request=adapter,
        )  # fmt: skip
        accepted = PoolingGeneration(output, self._abort)
        self._live[request_id] = accepted
        self._answers += 1
        return accepted

    async def check_structured_outputs(self, sampling: SamplingParams) -> None:
        """To be awaited before `submit` where the answer has a form. Raises `RequestError`: it cannot be had, or too
        many others wait to know whether theirs can (QUEUE_FULL)."""
        if sampling.structured_outputs is not None:
            await self._forms.check_soon(sampling.structured_outputs)

    def _facts(self) -> Facts:
        info = self.info
        if info is None:
            raise RequestError(f"the engine is {self.state}", code="ENGINE_NOT_READY")
        return info.vocab_size, frozenset(info.eos_token_ids)

    async def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The ids of `text`."""
        if self.tokenizer is None:
            raise RequestError("this needs a tokenizer", field="prompt", fix="without --skip-tokenizer-init")
        if len(text) < _LONG_TEXT:
            return self.tokenizer.encode(text, add_special_tokens)
        async with self._long_texts:
            return await asyncio.to_thread(_encode_long, self.tokenizer, text, add_special_tokens)

    async def render(
        self, messages: Sequence[Mapping[str, Any]], *, chat_template: str | None = None, **variables: Any
    ) -> str:
        """A conversation as the text of a prompt.

        Args:
            chat_template: in place of the checkpoint's. variables: for the template (`tools`, `add_generation_prompt`).
        """
        template = chat_template or (self.tokenizer and self.tokenizer.chat_template)
        if self.tokenizer is None or not template:
            raise RequestError(
                "this model has no chat template", code="NO_CHAT_TEMPLATE", field="messages",
                fix="start the server with --chat-template FILE, or use /v1/completions",
            )  # fmt: skip
        beginning, end = self.tokenizer.bos_token, self.tokenizer.eos_token
        return await asyncio.to_thread(
            self._templates.render, template, messages, bos_token=beginning, eos_token=end, **variables
        )

    def check_open(self, answers: int = 1) -> None:
        """Whether a request for so many answers could be accepted now: to be asked before its prompt is made, which
        costs more. Raises as `submit`."""
        if self.draining or self._supervisor.state == "closed":
            raise RequestError("the server is shutting down", code="SERVER_SHUTDOWN")
        info = self.info
        if info is None or self._supervisor.state not in ("ready", "stalled"):
            raise RequestError(f"the engine is {self.state}", code="ENGINE_NOT_READY")
        room = self.args.max_queue
        if room is not None and self._answers + answers > info.max_num_seqs + room:
            raise RequestError(
                "too many requests are waiting", code="QUEUE_FULL", field="max_queue",
                limit=f"{info.max_num_seqs} running and {room} waiting", value=self._answers + answers,
            )  # fmt: skip

    def _accept(self, request_id: str, answers: int, lora_name: str | None) -> LoRARequest | None:
        """Whether a request can be accepted now; returns its adapter."""
        self.check_open(answers)
        if request_id in self._live:
            raise RequestError("the request id is in use", code="DUPLICATE_REQUEST", field="request_id")
        return self._adapters.request(lora_name)

    def _abort(self, generation: Accepted[Any]) -> None:
        self._outputs.abort(generation.output)
        self._tell([generation.output.request_id])

    # --- adapters ---------------------------------------------------------------------------------------------------

    def list_loras(self) -> list[LoRAInfo]:
        """The adapters that requests may name."""
        return self._adapters.infos()

    async def add_lora(self, name: str, path: str) -> LoRAInfo:
        """Read an adapter, check that it fits, and keep it. Raises `BadAdapter`, `RequestError`."""
        return await self._adapters.add(name, path)

    async def remove_lora(self, name: str) -> LoRAInfo:
        """Forget an adapter. Raises `RequestError`: there is none of this name, or a request wants it."""
        return await self._adapters.remove(name)

    # --- what the engine says ---------------------------------------------------------------------------------------

    def _take(self, message: FromEngine) -> None:
        if isinstance(message, Stepped):
            self._stats = message.stats
            self._apply(message.updates)
        elif isinstance(message, Answer):
            self._adapters.answered(message)
        elif isinstance(message, Loaded):
            self._adapters.loaded(message.info)

    def _lost(self, error: EngineError) -> None:
        words = f"{error.error_code}: {error.message}"
        for generation in self._live.values():
            generation.error = error
        self._apply([SequenceUpdate(name, finish_reason="error", error=words) for name in self._outputs.live()])
        self._adapters.lost(error)
        self._stats = EngineStats()

    def _apply(self, updates: Sequence[SequenceUpdate]) -> None:
        self._tell([output.request_id for output in self._outputs.process(updates)])

    def _tell(self, request_ids: Sequence[str]) -> None:
        for request_id in request_ids:
            generation = self._live.get(request_id)
            if generation is None:
                continue
            generation.changed()
            if generation.output.finished:
                del self._live[request_id]
                self._finished(generation)
        self._answers = self._outputs.num_live

    def _finished(self, generation: Accepted[Any]) -> None:
        try:
            self._on_finish(generation)
        except Exception as cause:  # a listener's mistake is not the engine's
            notice(f"who listens for finished requests raised {type(cause).__name__}: {cause}")

    def _changed(self, state: State) -> None:
        async def tell() -> None:
            async with self._change:
                self._change.notify_all()

        self._telling = asyncio.get_running_loop().create_task(tell())

    # --- the end ----------------------------------------------------------------------------------------------------

    async def drain(self, seconds: float) -> None:
        """Take no new requests, wait for those there are, and end what is left with error SERVER_SHUTDOWN."""
        self.draining = True
        waits = [asyncio.create_task(self._ended(each)) for each in self._live.values()]
        if waits:
            await asyncio.wait(waits, timeout=seconds)
        for task in waits:
            task.cancel()
        self._lost(EngineError("the server is shutting down", code="SERVER_SHUTDOWN"))

    async def _ended(self, generation: Accepted[Any]) -> None:
        while not generation.output.finished:
            await asyncio.sleep(0.05)

    async def close(self) -> None:
        """End the engine process, and with it whatever it still computes; returns when it is gone."""
        self.draining = True
        self._lost(EngineError("the server is shutting down", code="SERVER_SHUTDOWN"))
        await self._supervisor.close()
        await asyncio.to_thread(self._templates.close)
        await asyncio.to_thread(self._forms.close)


def _encode_long(tokenizer: Tokenizer, text: str, add_special_tokens: bool) -> list[int]:
    try:
        return tokenizer.encode(text, add_special_tokens)
    finally:
        if len(text) >= _HUGE_TEXT:
            trim()
