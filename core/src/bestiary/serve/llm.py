"""`LLM`: the offline interface, with vLLM's names."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias

from bestiary.api.errors import BestiaryError, ModelFailed, RequestError, UsageError
from bestiary.api.lora import LoRAInfo, LoRARequest
from bestiary.api.outputs import (
    ClassificationRequestOutput,
    EmbeddingRequestOutput,
    PoolingRequestOutput,
    RequestOutput,
)
from bestiary.api.pooling import PoolingParams, PoolingTask
from bestiary.api.sampling import SamplingParams
from bestiary.engine.arguments import EngineArgs
from bestiary.engine.build import EngineBuilder

from .forms import Forms
from .outputs import AnyOutput, OutputProcessor
from .text.loading import tokenizer_of
from .text.prompts import Prompt, as_prompts, prompt_ids
from .text.template_process import TemplateProcess

if TYPE_CHECKING:
    from .text.tokenizer import Tokenizer

LoRAChoice: TypeAlias = LoRARequest | str
"""An adapter: where it lies, or the name of one that was added."""
Params: TypeAlias = SamplingParams | PoolingParams


class LLM:
    """A model, loaded and ready.

        llm = LLM("smollm2")
        for output in llm.generate(["The three primary colours are"], SamplingParams(temperature=0, max_tokens=24)):
            print(output.outputs[0].text)

    Args:
        model, **options: see `EngineArgs`. Use as a context manager, or call `close`, to free the memory at once.
            Several threads may call one `LLM`.

    Raises:
        ModelError, PluginError, UsageError: the model cannot be loaded; the message says what to do.
    """

    def __init__(self, model: str, **options: Any) -> None:
        self.args = EngineArgs.make(model, options)
        builder = EngineBuilder(self.args)
        self.tokenizer: Tokenizer | None = tokenizer_of(self.args, builder.description, builder.hooks)
        self.engine = builder.build(self.tokenizer.eos_token_ids if self.tokenizer else frozenset())
        self.vllm_config = self.engine.vllm_config
        self._outputs = OutputProcessor(self.engine, self.tokenizer)
        self._requests = 0
        self._templates = TemplateProcess()
        self._forms = Forms(self.args, self.tokenizer, lambda: (self.engine.vocab_size, self.engine.eos_token_ids))
        self._lock = threading.RLock()  # several threads may call; their requests are computed together

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        priority: Sequence[int] | None = None,
        lora_request: LoRAChoice | Sequence[LoRAChoice | None] | None = None,
    ) -> list[RequestOutput]:
        """Complete prompts, all together, and return their outputs in the same order.

        Args:
            prompts: one or several of: text, ``{"prompt": text}``, token ids, ``{"prompt_token_ids": ids}``.
            sampling_params: one for all, or one each.
            use_tqdm: show progress. priority: one each; lower is served first.
            lora_request: the adapter that answers: one for all, or one each, None being the model alone. A
                `LoRARequest`, or the name of an adapter that was added.

        Raises:
            RequestError: a prompt, its parameters or its adapter are refused, before anything runs. EngineError: the
                model failed, or one of several ranks was lost.
        """
        requests = self._submit(as_prompts(prompts), sampling_params, priority, lora_request)
        self._drive(requests, show=use_tqdm)
        return requests

    def encode(
        self,
        prompts: Prompt | Sequence[Prompt],
        pooling_params: PoolingParams | Sequence[PoolingParams] | None = None,
        *,
        use_tqdm: bool = True,
        priority: Sequence[int] | None = None,
        lora_request: LoRAChoice | Sequence[LoRAChoice | None] | None = None,
    ) -> list[PoolingRequestOutput[Any]]:
        """Make a vector of each prompt, all together, with a model that was loaded with ``runner="pooling"``.

        Args and errors are those of `generate`. An output whose `finish_reason` is "error" has no numbers.
        """
        given = PoolingParams() if pooling_params is None else pooling_params
        requests = self._submit(as_prompts(prompts), given, priority, lora_request)
        self._drive(requests, show=use_tqdm)
        return requests

    def embed(
        self,
        prompts: Prompt | Sequence[Prompt],
        pooling_params: PoolingParams | Sequence[PoolingParams] | None = None,
        **options: Any,
    ) -> list[EmbeddingRequestOutput]:
        """An embedding of each prompt: `encode` for the task "embed"; ``output.outputs.embedding`` are its numbers."""
        return self.encode(prompts, _for_task("embed", pooling_params), **options)

    def classify(
        self,
        prompts: Prompt | Sequence[Prompt],
        pooling_params: PoolingParams | Sequence[PoolingParams] | None = None,
        **options: Any,
    ) -> list[ClassificationRequestOutput]:
        """The classes of each prompt: `encode` for the task "classify"; ``output.outputs.probs`` are its numbers."""
        return self.encode(prompts, _for_task("classify", pooling_params), **options)

    def stream(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        *,
        lora_request: LoRAChoice | None = None,
    ) -> Iterator[RequestOutput]:
        """Complete one prompt, yielding its one growing output after every step that changed it."""
        (request,) = self._submit([prompt], sampling_params, None, lora_request)
        shown = 0
        try:
            while not request.finished:
                self._step()
                known = sum(len(output.token_ids) + output.finished for output in request.outputs)
                if known > shown:
                    shown = known
                    yield request
            if shown < sum(len(output.token_ids) + output.finished for output in request.outputs):
                yield request  # another call's steps ended it
            if self.engine.dead is not None:
                raise self.engine.dead
        finally:
            self._abort([request])

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        add_generation_prompt: bool = True,
        chat_template: str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        lora_request: LoRAChoice | Sequence[LoRAChoice | None] | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation, or several: ``[{"role": "user", "content": "…"}, …]``.

        Args:
            tools, chat_template_kwargs: given to the template (`tools`, `enable_thinking` …).
            lora_request: as in `generate`.
        """
        if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
            raise RequestError("messages are a list", code="BAD_MESSAGES", field="messages", value=messages)
        conversations: list[Any] = [messages] if messages and isinstance(messages[0], Mapping) else list(messages)
        options: dict[str, Any] = {"tools": tools, "chat_template_kwargs": chat_template_kwargs}
        options |= {"add_generation_prompt": add_generation_prompt, "template": chat_template}
        prompts = [{"prompt_token_ids": self.chat_ids(each, **options)} for each in conversations]
        return self.generate(prompts, sampling_params, use_tqdm=use_tqdm, lora_request=lora_request)

    def chat_ids(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        template: str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """A conversation as token ids, by the checkpoint's chat template or the one given."""
        tokenizer = self.get_tokenizer()
        template = template or tokenizer.chat_template
        if template is None:
            raise RequestError(
                "this model has no chat template", field="chat_template", fix="pass chat_template=…, or use generate"
            )
        if chat_template_kwargs:
            from .text.chat_template import check_variables

            check_variables(chat_template_kwargs)
        text = self._templates.render(
            template,
            messages,
            add_generation_prompt=add_generation_prompt,
            bos_token=tokenizer.bos_token,
            eos_token=tokenizer.eos_token,
            **({} if tools is None else {"tools": tools}),
            **(chat_template_kwargs or {}),
        )
        return tokenizer.encode(text, add_special_tokens=False)

    def add_lora(self, lora_request: LoRARequest) -> LoRAInfo:
        """Read an adapter, check that it fits, and keep it until `remove_lora`; requests may then name it.

        Raises:
            BadAdapter: it is damaged or does not fit; every module that is wrong is named.
            RequestError: its name is taken, there is no room, or the engine was made without `enable_lora`.
        """
        with self._lock:
            return self.engine.add_lora(LoRARequest.of(lora_request))

    def remove_lora(self, lora_name: str) -> LoRAInfo:
        """Forget an adapter. Raises `RequestError`: there is none of this name, or a request wants it."""
        with self._lock:
            return self.engine.remove_lora(lora_name)

    def list_loras(self) -> list[LoRAInfo]:
        """The adapters that are known, by name: where they lie, what they change, in which slot they are."""
        with self._lock:
            return self.engine.list_loras()

    @property
    def leads(self) -> bool:
        """Whether requests are answered here, and not by another rank of a model that several machines run."""
        return self.engine.team is None or self.engine.team.leads

    def follow(self) -> None:
        """On another rank than the first: take part in whatever that one does, until it closes its `LLM`.

        Raises:
            EngineError: a rank was lost.
        """
        self.engine.follow()

    def get_tokenizer(self) -> Tokenizer:
        """The tokenizer. Raises `UsageError` under `skip_tokenizer_init`."""
        if self.tokenizer is None:
            raise UsageError("this needs a tokenizer", field="skip_tokenizer_init", fix="skip_tokenizer_init=False")
        return self.tokenizer

    def close(self) -> None:
        """Free the model's memory; the object cannot be used afterwards."""
        self._templates.close()
        self._forms.close()
        self.engine.shutdown()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _submit(
        self,
        prompts: Sequence[Prompt],
        given: Params | Sequence[Params] | None,
        priority: Sequence[int] | None,
        lora_request: LoRAChoice | Sequence[LoRAChoice | None] | None = None,
    ) -> list[Any]:
        params = _one_each(SamplingParams() if given is None else given, len(prompts), "sampling_params")
        priorities = _one_each(0 if priority is None else priority, len(prompts), "priority")
        adapters = _one_each(lora_request, len(prompts), "lora_request")
        wrong = [each for each in params if not isinstance(each, SamplingParams | PoolingParams)]
        if wrong:
            limit = "SamplingParams, or a list of them"
            raise UsageError("no SamplingParams", field="sampling_params", value=wrong[0], limit=limit)
        requests: list[AnyOutput] = []
        try:
            chosen = [None if each is None else LoRARequest.of(each) for each in adapters]
            asked = zip(prompts, params, priorities, chosen, strict=True)
            for index, (prompt, each, rank, adapter) in enumerate(asked):
                requests.append(self._submit_one(index, prompt, each, rank, adapter))
        except RequestError as error:
            if len(prompts) > 1:
                error.message = f"prompt {len(requests)}: {error.message}"
            self._abort(requests)
            raise
        except BaseException:
            self._abort(requests)
            raise
        return requests

    def _abort(self, requests: Sequence[AnyOutput]) -> None:
        with self._lock:
            for request in requests:
                if not request.finished:
                    self._outputs.abort(request)

    def _step(self) -> list[AnyOutput]:
        with self._lock:
            try:
                updates = self.engine.step()
            except ModelFailed as error:
                cause = error.__cause__
                if isinstance(cause, BestiaryError):  # it says more
                    raise cause from cause.__cause__
                raise
            return self._outputs.process(updates)

    def _submit_one(
        self, index: int, prompt: Prompt, params: Params, priority: int, lora_request: LoRARequest | None
    ) -> AnyOutput:
        if isinstance(params, SamplingParams) and params.stop_strings and self.tokenizer is None:
            raise UsageError("stop strings need a tokenizer", field="stop", fix="skip_tokenizer_init=False")
        if isinstance(params, SamplingParams) and params.structured_outputs is not None and self.leads:
            self._forms.check(params.structured_outputs)
            with self._lock:
                if not self.engine.has_tokenizer:
                    self.engine.use_tokenizer(self._forms.tokenizer_json)
        text, ids = prompt_ids(prompt, self.tokenizer, index)
        with self._lock:
            request_id = str(self._requests)
            self._requests += 1
            options: dict[str, Any] = {"priority": priority, "lora_request": lora_request}
            if isinstance(params, PoolingParams):
                return self._outputs.add_pooling(request_id, text, ids, params, **options)
            return self._outputs.add(request_id, text, ids, params, **options)

    def _drive(self, requests: Sequence[AnyOutput], *, show: bool) -> None:
        from .progress import generation_progress

        try:
            with generation_progress(requests, enabled=show) as report:
                while any(not request.finished for request in requests):
                    report(self._step())
        finally:
            self._abort(requests)
        if self.engine.dead is not None:
            raise self.engine.dead


def _for_task(task: PoolingTask, given: PoolingParams | Sequence[PoolingParams] | None) -> Any:
    """Parameters that say what is wanted of them; those that say something else are refused."""
    if isinstance(given, list | tuple):
        return [_for_task(task, each) for each in given]
    params = PoolingParams() if given is None else given
    if not isinstance(params, PoolingParams):
        limit = "PoolingParams, or a list of them"
        raise UsageError("no PoolingParams", field="pooling_params", value=params, limit=limit)
    if params.task not in (None, task):
        raise RequestError("the parameters are for another task", field="task", value=params.task, limit=task)
    return replace(params, task=task)


def _one_each(given: Any, count: int, name: str) -> list[Any]:
    if not isinstance(given, list | tuple):
        return [given] * count
    if len(given) != count:
        raise UsageError(f"{len(given)} {name} for {count} prompts", field=name, limit=f"one, or {count}")
    return list(given)
