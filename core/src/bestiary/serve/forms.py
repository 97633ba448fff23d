"""The forms that answers may be asked for in, tried before a request is admitted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from bestiary.api.errors import RequestError
from bestiary.api.structured import FIELD, StructuredOutputsParams, Vocabulary
from bestiary.engine.arguments import EngineArgs
from bestiary.engine.checks import unavailable
from bestiary.engine.structured.process import GrammarProcess

if TYPE_CHECKING:
    from .text.tokenizer import Tokenizer

Facts = tuple[int, frozenset[int]]
"""Width of the logits, and the ids that end an answer."""


class Forms:
    """Owns the process that tries them.

    Args:
        facts: asked when that process is started.
    """

    def __init__(self, args: EngineArgs, tokenizer: Tokenizer | None, facts: Callable[[], Facts]) -> None:
        self._tokenizer, self._facts = tokenizer, facts
        self._process = GrammarProcess(self._vocabulary, args.structured_outputs_backend, args.plugin)
        self._turn = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, "bestiary-forms")

    @property
    def tokenizer_json(self) -> str:
        """What the engine is told before the first request whose answer has a form. Raises `RequestError`."""
        if self._tokenizer is None:
            raise unavailable()
        return self._tokenizer.as_json

    def check(self, wanted: StructuredOutputsParams) -> None:
        """Raises `RequestError`: no answer can be had in this form, as `GrammarProcess.check` says."""
        if self._tokenizer is None:
            raise unavailable()
        self._process.check(wanted)

    async def check_soon(self, wanted: StructuredOutputsParams) -> None:
        """The same for an event loop: whoever would wait for others longer than one of them may take is sent away."""
        if self._tokenizer is not None and self._process.knows(wanted):
            return
        try:
            await asyncio.wait_for(self._turn.acquire(), self._process.longest_s)
        except TimeoutError:
            raise RequestError(
                "too many other forms of answers are being tried", code="QUEUE_FULL", field=FIELD
            ) from None
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self.check, wanted)
        finally:
            self._turn.release()

    def knows(self, wanted: StructuredOutputsParams) -> bool:
        """Whether it was tried and is well. Raises `RequestError` where it was tried and is not."""
        return self._process.knows(wanted)

    def close(self) -> None:
        """End the process and the thread that speaks with it."""
        self._process.close()
        self._thread.shutdown(wait=False)

    def _vocabulary(self) -> Vocabulary:
        width, ends = self._facts()
        return Vocabulary(self.tokenizer_json, width, tuple(sorted(ends)))
