"""`RemoteEngine`: the engine in another process, as an `OutputProcessor` wants it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from bestiary.api.errors import EngineError, RequestError
from bestiary.api.lora import LoRARequest
from bestiary.api.pooling import PoolingParams
from bestiary.api.sampling import SamplingParams
from bestiary.api.structured import StructuredOutputsParams
from bestiary.engine.parallel.messages import AddRequest, EndRequest, UseTokenizer
from bestiary.engine.process.supervisor import Supervisor
from bestiary.engine.sequence import SequenceUpdate

from .forms import Forms


class RemoteEngine:
    """What would be refused there is refused here, by the same checks.

    Requests travel under numbers, so that what is still said of one that was given up is never taken for another's.
    """

    def __init__(self, supervisor: Supervisor, forms: Forms) -> None:
        self._supervisor, self._forms = supervisor, forms
        self._numbers = itertools.count()
        self._told: int | None = None  # how many restarts there had been when the engine was told

    def add_request(
        self,
        request_id: str,
        prompt_token_ids: Sequence[int],
        params: SamplingParams | PoolingParams,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
        lora_request: LoRARequest | None = None,
    ) -> list[str]:
        """Send a request. Raises `RequestError`: it can never run. `EngineError`: there is no engine."""
        info = self._supervisor.info
        if info is None:
            raise EngineError(f"the engine is {self._supervisor.state}", code="ENGINE_NOT_READY")
        info.checks.check(prompt_token_ids, params, priority)
        if isinstance(params, SamplingParams) and params.structured_outputs is not None:
            self._prepare(params.structured_outputs)
        lora_name = None if lora_request is None else lora_request.lora_name
        number = str(next(self._numbers))
        request = AddRequest.of(number, prompt_token_ids, params, priority, cache_salt, lora_name)
        try:
            self._supervisor.send(request)
        except UnicodeEncodeError as error:
            raise RequestError(
                "the request holds half of a surrogate pair and is not Unicode", value=error.object[error.start]
            ) from error
        return request.answers

    def _prepare(self, wanted: StructuredOutputsParams) -> None:
        """Each engine process is told of the tokenizer once; and none of a form that was not tried."""
        if not self._forms.knows(wanted):
            raise EngineError("the form of this answer was not tried before", fix="await check_structured_outputs")
        if self._told != self._supervisor.restarts:
            self._supervisor.send(UseTokenizer(self._forms.tokenizer_json))
            self._told = self._supervisor.restarts

    def finish(self, request_id: str, stop: str) -> SequenceUpdate | None:
        """Its text holds the stop string `stop`."""
        self._end(EndRequest(request_id, "stop", stop))
        return None  # what is known of it here says as much

    def abort(self, request_id: str) -> SequenceUpdate | None:
        """Nobody wants it any more."""
        self._end(EndRequest(request_id, "abort"))
        return SequenceUpdate(request_id, finish_reason="abort")

    def _end(self, event: EndRequest) -> None:
        if self._supervisor.info is not None and self._supervisor.state in ("ready", "stalled"):
            self._supervisor.send(event)
