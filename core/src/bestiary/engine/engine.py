"""The engine: requests in, updates out, one step at a time.

Where a token comes from: `add_request` gives the scheduler a `Sequence`; each `step` asks the scheduler which tokens to
compute (`StepPlan`), has the executor compute them (`StepResult`), and lets the scheduler record what was drawn
(`SequenceUpdate`).

Where a model is divided among several ranks, every rank has an engine. Only what users ask for goes from rank 0 to the
others, before each step (`parallel/follower.py`); schedulers are functions of that, so all derive the same plans.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from collections.abc import Sequence as SequenceOf
from types import MappingProxyType
from typing import TYPE_CHECKING

from bestiary.api.config import VllmConfig
from bestiary.api.errors import EngineError, ModelFailed
from bestiary.api.hooks import StepObserver
from bestiary.api.lora import LoRAInfo, LoRARequest
from bestiary.api.pooling import PoolingParams
from bestiary.api.sampling import SamplingParams
from bestiary.api.structured import StructuredOutputBackend, Vocabulary

from .adapters import Adapters
from .checks import RequestChecks, unavailable
from .executor import Executor
from .intake import Intake
from .lanes import Lanes, PlanFailed
from .library import AdapterLibrary
from .notices import notice
from .parallel.agreement import plan_settings
from .parallel.follower import Follower
from .parallel.interrupts import uninterrupted
from .parallel.messages import AddRequest, EndRequest, Settings, UseTokenizer
from .plan import StepPlan
from .pooling import PoolingOffer
from .scheduler import Scheduler, SchedulerStats
from .sequence import SequenceUpdate

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
        checks = RequestChecks(vocab_size, eos_token_ids, schedulers[0].limits, pooling)
        self._intake = Intake(
            checks, self.lanes, self.library, executor, seed=vllm_config.model_config.seed, make_backend=make_backend
        )
        self._follower: Follower | None = None
        if team is not None and team.leads:
            team.note(Settings(tuple(sorted(eos_token_ids)), plan_settings(vllm_config)))
        elif team is not None:
            self._follower = Follower(team, self._intake, vllm_config)
        self.observers = tuple(observers)
        self.ops = ops

    @property
    def checks(self) -> RequestChecks:
        """What requests must satisfy."""
        return self._intake.checks

    @property
    def has_tokenizer(self) -> bool:
        """Whether answers may have a form."""
        return self._intake.has_tokenizer

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
        if self._follower is not None:
            self._follower.expect(request)
            return request.answers
        if request.sampling.structured_outputs is not None and not self.has_tokenizer:
            raise unavailable()
        if lora_request is not None:
            self.add_lora(lora_request, pinned=False)
        children = self._intake.admit(request)
        if self.team is not None:
            self.team.note(request)
        return children

    def use_tokenizer(self, tokenizer_json: str) -> None:
        """Say what the tokens stand for, as the `tokenizers` library writes it, before the first request whose answer
        has a form. Such forms are compiled as they are: whoever adds requests has asked a `GrammarProcess` first.
        """
        self._refuse_if_dead()
        if self._follower is not None:
            return  # rank 0 says it
        self._intake.use_tokenizer(tokenizer_json)
        if self.team is not None:
            self.team.note(UseTokenizer(tokenizer_json))

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
                if self._follower is not None:
                    return self._follower.hear_of(request)
                return self.library.add(request, pinned=pinned)
        except EngineError as error:
            self.dead = self.team.explained(error)
            self.team.abandon()
            raise self.dead from error

    def remove_lora(self, name: str) -> LoRAInfo:
        """Forget an adapter. Raises `RequestError`: there is none of this name, or a request wants it."""
        self._refuse_if_dead()
        known = self.library.find(LoRARequest(name))
        if self._follower is not None and known is not None:
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
            if self._follower is None:
                team.tell()
            else:
                self._follower.hear_step()
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
        ended = self._intake.end(event)
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
        after = "the engine can still be used" if self.team is None else "all ranks were ended; make a new LLM"
        return failed.told(self.vllm_config.model_config.architecture, after)
