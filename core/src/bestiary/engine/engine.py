"""The engine: requests in, updates out, one step at a time.

Where a token comes from: `add_request` gives the scheduler a `Sequence`; each `step` asks the scheduler which tokens to
compute (`StepPlan`), has the executor compute them (`StepResult`), and lets the scheduler record what was drawn
(`SequenceUpdate`).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from types import MappingProxyType

from bestiary.api.config import VllmConfig
from bestiary.api.errors import BestiaryError, EngineError, RequestError
from bestiary.api.hooks import StepObserver
from bestiary.api.lora import LoRAInfo, LoRARequest
from bestiary.api.sampling import SamplingParams

from .adapters import Adapters
from .executor import Executor
from .notices import notice
from .plan import StepPlan
from .scheduler import Scheduler, SchedulerStats
from .sequence import Sequence, SequenceUpdate


class LLMEngine:
    """Owns the scheduler and the executor. Not thread-safe: one thread calls it.

    Args:
        vocab_size: width of the logits; token ids in requests must lie below it.
        eos_token_ids: what ends an answer unless `ignore_eos`.
        observers: told of every step. ops: which implementation of each op was chosen, for `doctor`.
    """

    def __init__(
        self,
        vllm_config: VllmConfig,
        scheduler: Scheduler,
        executor: Executor,
        *,
        vocab_size: int,
        eos_token_ids: frozenset[int] = frozenset(),
        observers: SequenceOf[StepObserver] = (),
        ops: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.vllm_config = vllm_config
        self.scheduler = scheduler
        self.executor = executor
        self.vocab_size = vocab_size
        self.eos_token_ids = eos_token_ids
        self.observers = tuple(observers)
        self.ops = ops

    def add_request(
        self,
        request_id: str,
        prompt_token_ids: SequenceOf[int],
        sampling: SamplingParams,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
        lora_request: LoRARequest | None = None,
    ) -> list[str]:
        """Admit one request, all its `n` answers or none.

        Args:
            lora_request: the adapter that answers; one that is not known is read and checked first.

        Returns:
            The ids under which updates come: `request_id` itself, or ``request_id/0`` … where `n` > 1.

        Raises:
            RequestError: it can never run; nothing was changed. BadAdapter: its adapter cannot be used.
        """
        if not isinstance(priority, int) or isinstance(priority, bool) or abs(priority) >= 2**63:
            raise RequestError(
                "a priority is a whole number", field="priority", value=priority, limit="a 64-bit integer"
            )
        self._check_ids("prompt_token_ids", prompt_token_ids)
        for name in ("stop_token_ids", "bad_token_ids", "allowed_token_ids"):
            self._check_ids(name, getattr(sampling, name) or ())
        self._check_ids("logit_bias", tuple(sampling.logit_bias))
        self._check_drawable(sampling)
        lora_id = None if lora_request is None else self.add_lora(lora_request, pinned=False).lora_id
        children = [request_id] if sampling.n == 1 else [f"{request_id}/{index}" for index in range(sampling.n)]
        sequences: list[Sequence] = []
        for index, child in enumerate(children):
            own = sampling if sampling.n == 1 else sampling.child(index)
            sequences.append(
                Sequence(
                    child,
                    prompt_token_ids,
                    own,
                    seed=self._seed(child, own),
                    priority=priority,
                    eos_token_ids=self.eos_token_ids,
                    cache_salt=cache_salt,
                    lora_name=lora_id,
                    leader=sequences[0] if sequences else None,
                )
            )
        self.scheduler.add(*sequences)
        return children

    def add_lora(self, request: LoRARequest, *, pinned: bool = True) -> LoRAInfo:
        """Make an adapter known: read it and check that it fits. One that is known under its name is only looked up.

        Args:
            pinned: it stays until it is removed; otherwise it gives way when room is needed.

        Raises:
            RequestError: the name is another adapter's, which is wanted; or there is no room. BadAdapter: it is
                damaged or does not fit; nothing was changed.
        """
        adapters = self._adapters()
        known = adapters.known(request.lora_name)
        if known is None and request.lora_path is None:
            raise adapters.unknown(request.lora_name)
        if known is not None and request.lora_path in (None, known.path):
            if pinned:
                adapters.pin(known.name)
            return known
        if known is not None:
            if known.pinned and not pinned:
                raise RequestError(
                    f"the name {known.name} is that of an adapter which was added", code="ADAPTER_NAME_TAKEN",
                    field="lora_path", value=request.lora_path, limit=known.path, fix="another name, or remove_lora",
                )  # fmt: skip
            if known.requests:
                adapters.remove(known.name)  # raises
        dropped = adapters.to_drop() if known is None else known.name
        info = self.executor.add_adapter(request.lora_name, str(request.lora_path))
        if dropped is not None:
            self._forget(dropped, but=info.lora_id)
        adapters.add(info, pinned=pinned)
        return info

    def remove_lora(self, name: str) -> LoRAInfo:
        """Forget an adapter. Raises `RequestError`: there is none of this name, or a request wants it."""
        self._adapters()
        return self._forget(name)

    def list_loras(self) -> list[LoRAInfo]:
        """The adapters that are known, by name."""
        return self.scheduler.adapters.infos()

    def _forget(self, name: str, but: str | None = None) -> LoRAInfo:
        info = self.scheduler.adapters.remove(name)
        if info.lora_id != but:
            self.executor.remove_adapter(info.lora_id)
        return info

    def _adapters(self) -> Adapters:
        adapters = self.scheduler.adapters
        if adapters.config is None:
            raise RequestError(
                "this engine has no slots for adapters", code="LORA_DISABLED", field="lora_request",
                fix="LLM(…, enable_lora=True), or --lora NAME=PATH on the command line",
            )  # fmt: skip
        return adapters

    def step(self) -> list[SequenceUpdate]:
        """Compute one step; every accepted request ends in exactly one terminal update.

        Raises:
            EngineError: the model raised (code MODEL_FAILED, the cause chained). Nothing was computed and nothing is
                lost: the next step repeats it.
        """
        plan = self.scheduler.schedule()
        started = time.perf_counter()
        try:
            result = self.executor.execute(plan)
        except BaseException as cause:
            self.scheduler.abandon(plan)
            if isinstance(cause, BestiaryError | KeyboardInterrupt):
                raise
            raise self._model_failed(plan, cause) from cause
        updates = self.scheduler.update(plan, result)
        seconds = time.perf_counter() - started
        for observer in self.observers:
            self._tell(observer, plan, seconds)
        return updates

    def _tell(self, observer: StepObserver, plan: StepPlan, seconds: float) -> None:
        """An observer that raises is told nothing more; the step's tokens are not its business."""
        try:
            observer.on_step(plan, seconds)
        except Exception as cause:
            self.observers = tuple(each for each in self.observers if each is not observer)
            notice(f"step observer {type(observer).__name__} raised {type(cause).__name__}: {cause}; it is left out")

    def finish(self, request_id: str, stop: str) -> SequenceUpdate | None:
        """End an answer because its text holds the stop string `stop`; None if it had ended already."""
        return self.scheduler.finish(request_id, "stop", stop)

    def abort(self, request_id: str) -> SequenceUpdate | None:
        """Forget an answer; None if it had ended already."""
        return self.scheduler.abort(request_id)

    @property
    def has_unfinished_requests(self) -> bool:
        return self.scheduler.has_unfinished()

    def stats(self) -> SchedulerStats:
        return self.scheduler.stats()

    def shutdown(self) -> None:
        self.executor.shutdown()

    def _model_failed(self, plan: StepPlan, cause: BaseException) -> EngineError:
        model = self.vllm_config.model_config.architecture
        return EngineError(
            f"{model} failed in step {plan.step}: {type(cause).__name__}: {cause}",
            code="MODEL_FAILED",
            field=model,
            details=[f"{item.request_id}: tokens {item.start} to {item.start + item.count - 1}" for item in plan.items],
            fix="look at the chained traceback (--debug on the command line); the engine can still be used",
        )

    def _check_ids(self, field: str, ids: SequenceOf[int]) -> None:
        for index, token in enumerate(ids):
            if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < self.vocab_size:
                raise RequestError(
                    f"{field}[{index}] is not a token of this model",
                    code="TOKEN_OUT_OF_RANGE",
                    field=f"{field}[{index}]",
                    value=token,
                    limit=f"an integer from 0 to {self.vocab_size - 1}",
                )

    def _check_drawable(self, sampling: SamplingParams) -> None:
        """Some token must be left to draw, also while fewer than `min_tokens` were."""
        banned = set(sampling.bad_token_ids)
        if sampling.min_tokens:
            banned |= {*sampling.stop_token_ids, *(() if sampling.ignore_eos else self.eos_token_ids)}
        allowed = sampling.allowed_token_ids
        left = len(set(allowed) - banned) if allowed is not None else self.vocab_size - len(banned)
        if left < 1:
            raise RequestError(
                "no token is left to draw",
                code="NOTHING_TO_DRAW",
                field="bad_token_ids" if allowed is None else "allowed_token_ids",
                limit="an id that is neither bad nor, while min_tokens are due, one that ends the answer",
            )

    def _seed(self, request_id: str, sampling: SamplingParams) -> int:
        if sampling.seed is not None:
            return sampling.seed
        key = f"{self.vllm_config.model_config.seed}/{request_id}".encode()
        return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 1
