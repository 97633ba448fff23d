"""The engine: requests in, updates out, one step at a time.

Where a token comes from: `add_request` gives the scheduler a `Sequence`; each `step` asks the scheduler which tokens to
compute (`StepPlan`), has the executor compute them (`StepResult`), and lets the scheduler record what was drawn
(`SequenceUpdate`).

Where a model is divided among several ranks, every rank has an engine. Only what users ask for goes from rank 0 to the
others, before each step; schedulers are functions of that, so all derive the same plans.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Set
from collections.abc import Sequence as SequenceOf
from contextlib import suppress
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from bestiary.api.config import VllmConfig
from bestiary.api.errors import BadAdapter, EngineError, ModelFailed
from bestiary.api.hooks import StepObserver
from bestiary.api.lora import LoRAInfo, LoRARequest
from bestiary.api.pooling import PoolingParams
from bestiary.api.sampling import SamplingParams
from bestiary.api.structured import StructuredOutputBackend, Vocabulary

from .adapters import Adapters
from .checks import RequestChecks, unavailable
from .executor import Executor
from .lanes import Lanes, PlanFailed
from .library import AdapterLibrary
from .notices import notice
from .parallel.agreement import plan_settings, refuse_other_settings
from .parallel.interrupts import uninterrupted
from .parallel.messages import (
    AddAdapter,
    AddRequest,
    EndRequest,
    Event,
    PinAdapter,
    RemoveAdapter,
    Settings,
    UseTokenizer,
)
from .plan import StepPlan
from .pooling import PoolingOffer
from .scheduler import Scheduler, SchedulerStats
from .sequence import Sequence, SequenceUpdate

if TYPE_CHECKING:
    from .parallel.team import Team


class LLMEngine:
    """Owns the schedulers and the executor. Not thread-safe: one thread calls it.

    Args:
        schedulers: one a copy of the model. team: the other ranks; None where this process is alone.
        adapters: those that all schedulers know.
        vocab_size: width of the logits; token ids in requests must lie below it.
        eos_token_ids: what ends an answer unless `ignore_eos`.
        observers: told of every step. ops: which implementation of each op was chosen, for `doctor`.
        pooling: what requests may ask of a model that makes vectors; None where it generates text.
        make_backend: what enforces the forms of answers.
    """

    def __init__(
        self,
        vllm_config: VllmConfig,
        schedulers: SequenceOf[Scheduler],
        executor: Executor,
        *,
        team: Team | None = None,
        adapters: Adapters | None = None,
        vocab_size: int,
        eos_token_ids: frozenset[int] = frozenset(),
        observers: SequenceOf[StepObserver] = (),
        ops: Mapping[str, str] = MappingProxyType({}),
        pooling: PoolingOffer | None = None,
        make_backend: Callable[[Vocabulary], StructuredOutputBackend] | None = None,
    ) -> None:
        self.vllm_config = vllm_config
        self.lanes = Lanes(schedulers, vllm_config.scheduler_config.async_scheduling)
        self.executor = executor
        self.team = team
        self.dead: EngineError | None = None
        self.library = AdapterLibrary(adapters or Adapters(), self.lanes, executor, team)
        self._expected: dict[str, AddRequest] = {}
        if team is not None and team.leads:
            team.note(Settings(tuple(sorted(eos_token_ids)), plan_settings(vllm_config)))
        self.checks = RequestChecks(vocab_size, eos_token_ids, schedulers[0].limits, pooling)
        self.observers = tuple(observers)
        self.ops = ops
        self._make_backend = make_backend
        self.has_tokenizer = False

    @property
    def vocab_size(self) -> int:
        return self.checks.vocab_size

    @property
    def eos_token_ids(self) -> frozenset[int]:
        return self.checks.eos_token_ids

    @property
    def scheduler(self) -> Scheduler:
        """The first copy's, which is the only one as a rule."""
        return self.lanes.lanes[0].scheduler

    def add_request(
        self,
        request_id: str,
        prompt_token_ids: SequenceOf[int],
        params: SamplingParams | PoolingParams,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
        lora_request: LoRARequest | None = None,
    ) -> list[str]:
        """Admit one request, all its `n` answers or none.

        Args:
            params: how tokens are drawn, or what vector is made of the prompt, as the model does either.
            lora_request: the adapter that answers; one that is not known is read and checked first.

        Returns:
            The ids under which updates come: `request_id` itself, or ``request_id/0`` … where `n` > 1.

        Raises:
            RequestError: it can never run; nothing was changed. BadAdapter: its adapter cannot be used. EngineError: a
                rank was lost, and with it the engine.
        """
        self._refuse_if_dead()
        self.checks.check(prompt_token_ids, params, priority)
        adapter = None if lora_request is None else lora_request.lora_name
        request = AddRequest.of(request_id, prompt_token_ids, params, priority, cache_salt, adapter)
        if self.team is not None and not self.team.leads:
            self._expected[request_id] = request  # admitted when rank 0 says so
            return request.answers
        if request.sampling.structured_outputs is not None and not self.has_tokenizer:
            raise unavailable()
        if lora_request is not None:
            self.add_lora(lora_request, pinned=False)
        children = self._admit(request)
        if self.team is not None:
            self.team.note(request)
        return children

    def _admit(self, request: AddRequest) -> list[str]:
        sampling, sequences = request.sampling, list[Sequence]()
        lora_id = self.library.id_of(request.lora_name)
        children = request.answers
        for index, child in enumerate(children):
            own = sampling if sampling.n == 1 else sampling.child(index)
            sequences.append(
                Sequence(
                    child,
                    request.prompt_token_ids,
                    own,
                    seed=self._seed(child, own),
                    priority=request.priority,
                    eos_token_ids=self.checks.eos_token_ids,
                    cache_salt=request.cache_salt,
                    lora_name=lora_id,
                    leader=sequences[0] if sequences else None,
                    pooling=request.pooling,
                )
            )
        self.lanes.add(*sequences)
        return children

    def use_tokenizer(self, tokenizer_json: str) -> None:
        """Say what the tokens stand for, as the `tokenizers` library writes it, before the first request whose answer
        has a form. Such forms are compiled as they are: whoever adds requests has asked a `GrammarProcess` first.
        """
        self._refuse_if_dead()
        if self.team is not None and not self.team.leads:
            return  # rank 0 says it
        self._use_tokenizer(tokenizer_json)
        if self.team is not None:
            self.team.note(UseTokenizer(tokenizer_json))

    def _use_tokenizer(self, tokenizer_json: str) -> None:
        make = self._make_backend
        if make is None:
            raise unavailable()
        vocabulary = Vocabulary(tokenizer_json, self.vocab_size, tuple(sorted(self.eos_token_ids)))
        self.executor.use_backend(lambda: make(vocabulary))
        self.has_tokenizer = True

    def add_lora(self, request: LoRARequest, *, pinned: bool = True) -> LoRAInfo:
        """Make an adapter known: read it and check that it fits. One that is known under its name is only looked up.

        Args:
            pinned: it stays until it is removed; otherwise it gives way when room is needed.

        Raises:
            BadAdapter: it is damaged or does not fit, and nothing was changed. RequestError: the name is another
                adapter's, there is no room, or the engine has no slots.
        """
        self._refuse_if_dead()
        if self.team is None:
            return self.library.add(request, pinned=pinned)
        try:
            with uninterrupted():
                return self._add_lora_together(self.team, request, pinned)
        except EngineError as error:
            self.dead = self.team.explained(error)
            self.team.abandon()
            raise self.dead from error

    def _add_lora_together(self, team: Team, request: LoRARequest, pinned: bool) -> LoRAInfo:
        """Ranks other than the first wait until that one, whose script does the same, asks them to read it."""
        if team.leads:
            return self.library.add(request, pinned=pinned)
        while (known := self.library.find(request)) is None:
            self.library.refused = None
            self._hear(team)
            if self.library.refused is not None:
                raise self.library.refused
        return known

    def remove_lora(self, name: str) -> LoRAInfo:
        """Forget an adapter. Raises `RequestError`: there is none of this name, or a request wants it."""
        self._refuse_if_dead()
        known = self.library.find(LoRARequest(name))
        if self.team is not None and not self.team.leads and known is not None:
            return known  # forgotten when rank 0 says so
        return self.library.remove(name)

    def list_loras(self) -> list[LoRAInfo]:
        """The adapters that are known, by name."""
        return self.library.infos()

    def step(self, only: Set[str] | None = None) -> list[SequenceUpdate]:
        """Compute one step; every accepted request ends in exactly one terminal update.

        Args:
            only: the ids of answers that it may be about, to find out which of them fails; None is all of them. For
                an engine without other ranks.

        Raises:
            ModelFailed: the model raised. Nothing was computed and nothing is lost: the next step repeats it.
        """
        self._refuse_if_dead()
        if self.team is not None:
            with uninterrupted():
                return self._step_together(self.team)
        try:
            return self._step(only)
        except PlanFailed as failed:
            raise self._model_failed(failed) from failed.__cause__

    def _step(self, only: Set[str] | None = None) -> list[SequenceUpdate]:
        updates: list[SequenceUpdate] = []
        for plan, seconds, changed in self.lanes.step(self.executor, only):
            updates += changed
            for observer in self.observers:
                self._tell(observer, plan, seconds)
        return updates

    def _step_together(self, team: Team) -> list[SequenceUpdate]:
        """A step that fails anywhere ends the engine, and every request with an error: ranks are no longer in step."""
        try:
            self._agree(team)
            return self._step()
        except PlanFailed as failed:
            self.dead = self._model_failed(failed)
        except EngineError as error:
            self.dead = team.explained(error)
        except Exception as cause:
            self.dead = EngineError(f"rank {team.rank} failed: {type(cause).__name__}: {cause}", code="RANK_FAILED")
            self.dead.__cause__ = cause
        team.abandon()
        return self.lanes.fail_all(f"{self.dead.error_code}: {self.dead.message}")

    def _agree(self, team: Team) -> None:
        """Rank 0 tells what users asked for since the last step; the others take it from there."""
        if team.leads:
            team.tell()
            return
        while not self._hear(team):
            pass

    def _hear(self, team: Team) -> bool:
        """Do what rank 0 says; whether it begins a step."""
        tick = team.hear()
        for event in tick.events:
            self._apply(team, event)
        return tick.step

    def _apply(self, team: Team, event: Event) -> None:
        if isinstance(event, AddRequest):
            own = self._expected.pop(event.request_id, event)
            if own != event:
                raise EngineError(
                    f"rank {team.rank} was given another request than rank 0", code="RANKS_DISAGREE",
                    field=event.request_id, fix="give every rank the same requests, or serve from rank 0 alone",
                )  # fmt: skip
            self._admit(event)
        elif isinstance(event, Settings):
            self.checks = replace(self.checks, eos_token_ids=frozenset(event.eos_token_ids))
            refuse_other_settings(event.values, plan_settings(self.vllm_config), team.rank)
        elif isinstance(event, UseTokenizer):
            self._use_tokenizer(event.tokenizer_json)
        elif isinstance(event, EndRequest):
            self.lanes.finish(event.request_id, event.reason, event.stop_reason)
        elif isinstance(event, AddAdapter):
            with suppress(BadAdapter):  # rank 0 says it
                self.library.read(event)
        elif isinstance(event, PinAdapter):
            self.library.pin(event.name)
        elif isinstance(event, RemoveAdapter):
            self.library.forget(event.name)
        else:
            raise EngineError("rank 0 has closed the engine", code="CLOSED")

    def follow(self) -> None:
        """Do what rank 0 does, until it closes the engine. Raises `EngineError` where a rank is lost."""
        while self.dead is None:
            self.step()
        if self.dead.error_code != "CLOSED":
            raise self.dead

    def check_team(self) -> None:
        """Between two steps: raises the error of a rank that was lost, and ends the others."""
        self._refuse_if_dead()
        if self.team is not None and self.team.workers is not None and self.team.workers.failure is not None:
            self.dead = self.team.workers.failure
            self.team.abandon()
            raise self.dead

    def _refuse_if_dead(self) -> None:
        if self.dead is not None:
            raise self.dead

    def _tell(self, observer: StepObserver, plan: StepPlan, seconds: float) -> None:
        """An observer that raises is told nothing more; the step's tokens are not its business."""
        try:
            observer.on_step(plan, seconds)
        except Exception as cause:
            self.observers = tuple(each for each in self.observers if each is not observer)
            notice(f"step observer {type(observer).__name__} raised {type(cause).__name__}: {cause}; it is left out")

    def finish(self, request_id: str, stop: str) -> SequenceUpdate | None:
        """End an answer because its text holds the stop string `stop`; None if it had ended already."""
        return self.end(EndRequest(request_id, "stop", stop))

    def fail(self, request_id: str, error: str) -> SequenceUpdate | None:
        """End an answer with `error`; None if it had ended already. For an engine without other ranks."""
        return self.lanes.fail(request_id, error)

    def abort(self, request_id: str) -> SequenceUpdate | None:
        """Forget an answer; None if it had ended already."""
        return self.end(EndRequest(request_id, "abort"))

    def end(self, event: EndRequest) -> SequenceUpdate | None:
        """End an answer as `event` says; None if it had ended already."""
        ended = self.lanes.finish(event.request_id, event.reason, event.stop_reason)
        if ended is not None and self.team is not None and self.team.leads:
            self.team.note(event)
        return ended

    @property
    def failure(self) -> EngineError | None:
        """Why nothing can be computed any more, also where no step has come upon it yet."""
        workers = None if self.team is None else self.team.workers
        return self.dead or (None if workers is None else workers.failure)

    @property
    def has_unfinished_requests(self) -> bool:
        return self.lanes.has_unfinished()

    def stats(self) -> SchedulerStats:
        return self.lanes.stats()

    def shutdown(self) -> None:
        self.executor.shutdown()

    def _model_failed(self, failed: PlanFailed) -> ModelFailed:
        model, plan, cause = self.vllm_config.model_config.architecture, failed.plan, failed.__cause__
        after = "the engine can still be used" if self.team is None else "all ranks were ended; make a new LLM"
        error = ModelFailed(
            f"{model} failed in step {plan.step}: {type(cause).__name__}: {cause}",
            field=model,
            details=[f"{item.request_id}: tokens {item.start} to {item.start + item.count - 1}" for item in plan.items],
            fix=f"look at the chained traceback (--debug on the command line); {after}",
        )
        error.request_ids = frozenset(item.request_id for item in plan.items)
        error.__cause__ = cause
        return error

    def _seed(self, request_id: str, sampling: SamplingParams) -> int:
        if sampling.seed is not None:
            return sampling.seed
        key = f"{self.vllm_config.model_config.seed}/{request_id}".encode()
        return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 1
