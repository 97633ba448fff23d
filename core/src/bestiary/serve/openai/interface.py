"""What the endpoints need of a model: the part of `AsyncLLM` that they use, as protocols."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Protocol

from bestiary.api.errors import EngineError
from bestiary.api.lora import LoRAInfo
from bestiary.api.outputs import RequestOutput
from bestiary.api.sampling import SamplingParams
from bestiary.engine.arguments import EngineArgs
from bestiary.serve.text.tokenizer import Tokenizer


class EngineStatus(Protocol):
    state: str
    error: EngineError | None
    pids: Sequence[int]
    restarts: int


class ModelInfo(Protocol):
    max_model_len: int


class Generation(Protocol):
    """An accepted request; iterating gives its output after every change."""

    output: RequestOutput
    error: EngineError | None

    def __aiter__(self) -> AsyncIterator[RequestOutput]: ...

    def abort(self) -> None: ...


class AsyncLLM(Protocol):
    args: EngineArgs
    tokenizer: Tokenizer | None
    info: ModelInfo | None
    status: EngineStatus

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
    ) -> Generation: ...

    async def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
    ) -> str: ...

    async def encode(self, text: str, add_special_tokens: bool = True) -> list[int]: ...

    async def add_lora(self, name: str, path: str) -> LoRAInfo: ...

    async def remove_lora(self, name: str) -> LoRAInfo: ...

    def list_loras(self) -> list[LoRAInfo]: ...

    def stats(self) -> Any: ...
