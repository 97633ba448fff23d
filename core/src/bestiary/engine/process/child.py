"""The engine process: do what users want, step, say what became of it; end with the parent.

The main thread owns the engine; two others speak with the parent (`parent.py`).
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import traceback
from typing import TYPE_CHECKING

from bestiary.api.errors import BestiaryError, EngineError, RequestError
from bestiary.api.lora import LoRARequest
from bestiary.api.registry import ModelRegistry
from bestiary.engine.arguments import EngineArgs
from bestiary.engine.heap import trim
from bestiary.engine.parallel.by_hand import refusal
from bestiary.engine.parallel.messages import AddRequest, EndRequest, Trouble, UseTokenizer, sendable
from bestiary.engine.sequence import SequenceUpdate
from bestiary.engine.stderr import never_fail_stderr

from .messages import (
    Answer,
    DropAdapter,
    EngineStats,
    Failed,
    Launch,
    LoadAdapter,
    Loaded,
    Quit,
    Stepped,
    ToEngine,
)
from .parent import Parent

if TYPE_CHECKING:
    from bestiary.engine.engine import LLMEngine

_PR_SET_PDEATHSIG = 1


class Worker:
    """The main thread: an engine, and what it is asked."""

    def __init__(self, engine: LLMEngine, parent: Parent) -> None:
        self._engine, self._parent = engine, parent
        self._seconds, self._steps, self._tokens, self._numerical = 0.0, 0, 0, 0
        engine.observers = (*engine.observers, self)
        if engine.team is not None:
            engine.team.on_lost = parent.wake

    def on_step(self, plan: object, seconds: float) -> None:
        """As a `StepObserver`."""
        self._tokens += getattr(plan, "num_tokens", 0)
        self._seconds += seconds

    def run(self) -> None:
        """Until the parent says `Quit`. Raises what the engine died of, which needs no request to be noticed."""
        self._engine.check_team()
        while self._take():
            if not self._engine.has_unfinished_requests:
                continue
            self._steps += 1
            updates = self._step()
            self._parent.moves += 1
            self._tell([self._explained(update) for update in updates])
            if self._engine.dead is not None:
                raise self._engine.dead

    def _step(self) -> list[SequenceUpdate]:
        from bestiary.engine import recovery

        return recovery.step(self._engine)

    def _explained(self, update: SequenceUpdate) -> SequenceUpdate:
        """Counts what could not be drawn, and says where that was."""
        if update.error != "numerical":
            return update
        self._numerical += 1
        model = self._engine.vllm_config.model_config.architecture
        words = f"step {self._steps} of {model} gave logits that hold NaN or Inf, or nothing but -Inf"
        return update._replace(error=f"NUMERICAL: {words}; --verify tells whether the weights are as published")

    def _take(self) -> bool:
        """Do what was asked since the last step, and wait where there is nothing to compute; False when to end."""
        while not (self._parent.inbox.empty() and self._engine.has_unfinished_requests):
            message = self._parent.hear()
            if isinstance(message, Quit):
                return False
            if message is None:
                self._engine.check_team()
            else:
                self._apply(message)
        return True

    def _apply(self, message: ToEngine) -> None:
        engine = self._engine
        if isinstance(message, AddRequest):
            self._add(message)
        elif isinstance(message, EndRequest):
            ended = engine.end(message)
            if ended is not None:
                self._tell([ended])
        elif isinstance(message, UseTokenizer):
            engine.use_tokenizer(message.tokenizer_json)
        elif isinstance(message, LoadAdapter | DropAdapter):
            self._answer(message)
        else:
            raise EngineError(f"{type(message).__name__} comes first, or not at all", code="BAD_MESSAGE")

    def _add(self, request: AddRequest) -> None:
        lora = None if request.lora_name is None else LoRARequest(request.lora_name)
        try:
            self._engine.add_request(
                request.request_id,
                request.prompt_token_ids,
                request.params,
                priority=request.priority,
                cache_salt=request.cache_salt,
                lora_request=lora,
            )
        except RequestError as error:
            words = f"{error.error_code}: {error.message}"
            self._tell([SequenceUpdate(name, finish_reason="error", error=words) for name in request.answers])

    def _answer(self, message: LoadAdapter | DropAdapter) -> None:
        try:
            if isinstance(message, LoadAdapter):
                info = self._engine.add_lora(LoRARequest(message.name, lora_path=message.path))
            else:
                info = self._engine.remove_lora(message.name)
        except RequestError as error:
            self._parent.say(Answer(message.number, error=Trouble.of(error)))
        else:
            self._parent.say(Answer(message.number, info))
        trim()  # of what reading it took

    def _tell(self, updates: list[SequenceUpdate]) -> None:
        told = [each if each.error is None else each._replace(error=sendable(each.error)) for each in updates]
        self._parent.say(Stepped(tuple(told), self.stats()))

    def stats(self) -> EngineStats:
        found = self._engine.stats()
        cache = found.kv_cache
        return EngineStats(
            running=found.running,
            waiting=found.waiting,
            blocks=cache.num_blocks,
            used_blocks=cache.used_blocks,
            cached_blocks=cache.cached_blocks,
            prefix_queries=cache.prefix_queries,
            prefix_hits=cache.prefix_hits,
            steps=self._steps,
            tokens=self._tokens,
            step_seconds=self._seconds,
            preemptions=found.preemptions,
            numerical_errors=self._numerical,
        )


def main(descriptor: int) -> None:
    """The whole life of an engine process, at the other end of socket `descriptor`. When it ends is its parent's
    business: signals that a service manager sends to both are the parent's to answer."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # not SIG_IGN, which the processes of a plugin would inherit
    never_fail_stderr()
    end_with_parent()
    parent = Parent(socket.socket(fileno=descriptor))
    parent.start()
    os._exit(live(parent))  # neither torch's threads nor a plugin's may keep it alive


def end_with_parent() -> None:
    """Have the system kill this process when its parent ends: also one whose plugin holds the interpreter's lock, and
    with it the thread that reads the socket. Elsewhere than on Linux that thread alone must do."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def live(parent: Parent) -> int:
    """Be the engine that the parent describes. Returns the exit status: 0 after a peace."""
    engine: LLMEngine | None = None
    try:
        engine = _start(parent)
        Worker(engine, parent).run()
    except BestiaryError as error:
        return _fail(parent, error, error)
    except BaseException as cause:
        return _fail(parent, EngineError(f"{type(cause).__name__}: {cause}", code="ENGINE_FAILED"), cause)
    finally:
        if engine is not None:
            engine.shutdown()
    return 0


def _start(parent: Parent) -> LLMEngine:
    with parent.phase("import torch"):  # while the parent still finds out what it wants
        from bestiary.engine.build import EngineBuilder

        from .facts import model_info
    launch = parent.inbox.get()
    if not isinstance(launch, Launch):
        raise EngineError(f"{type(launch).__name__} does not come first", code="BAD_MESSAGE")
    for architecture, model in launch.models.items():
        ModelRegistry.register_model(architecture, model)
    args = EngineArgs(**launch.arguments)
    with parent.phase("read the model's description"):
        builder = EngineBuilder(args)
    for architecture in launch.unnamed.keys() & set(builder.description.architectures):
        raise refusal(architecture, launch.unnamed[architecture])
    with parent.phase("load the model"):
        engine = builder.build(frozenset(launch.eos_token_ids))
    parent.busy = False
    parent.say(Loaded(model_info(engine, builder)))
    return engine


def _fail(parent: Parent, error: BestiaryError, cause: BaseException) -> int:
    """Tell the parent, and, where it is nobody's input, whoever reads the standard error."""
    if isinstance(error, EngineError):
        traceback.print_exception(cause, file=sys.stderr)
    parent.say(Failed(type(error).__name__, Trouble.of(error)))
    parent.finish()
    return error.exit_code
