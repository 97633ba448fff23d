"""Answers' grammars in the engine, kept in step with their tokens by threads, beside the model's work.

What may come next depends on the tokens so far alone, so it is worked out while the model computes. Where it is not
ready a moment after the model is, the request waits for a later step, and the others go on: a grammar that is slow is
slow for its own request. A grammar never runs ahead of the tokens that were recorded, so a step that failed leaves it
right.
"""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, NamedTuple

from bestiary.api.errors import RequestError
from bestiary.api.structured import StructuredOutputBackend, StructuredOutputGrammar, StructuredOutputsParams
from bestiary.engine.confined import STACK_BYTES
from bestiary.engine.plan import SampledToken

if TYPE_CHECKING:
    from bestiary.engine.request_state import RequestState

THREADS = 2
PATIENCE_S = 0.02
"""How long one step waits for all its grammars together."""
LONGEST_S = 60.0
"""How long one request waits for its own, over all its steps."""
WAIT = SampledToken(-1, instead="wait")


class Task(NamedTuple):
    """Something to do, and where its result goes."""

    work: Callable[[], bytes]
    result: Future[bytes]


class Workers:
    """A few threads with deep stacks, which end when their owner does."""

    def __init__(self, count: int = THREADS) -> None:
        self._tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        before = threading.stack_size(STACK_BYTES)
        try:
            for _ in range(count):
                threading.Thread(target=_run, args=[self._tasks], name="bestiary-grammar", daemon=True).start()
        finally:
            threading.stack_size(before)
        self.close = weakref.finalize(self, _end, self._tasks, count)

    def begin(self, work: Callable[[], bytes]) -> Future[bytes]:
        task = Task(work, Future())
        self._tasks.put(task)
        return task.result


class Follower:
    """One answer's grammar. `work` is done by one thread at a time."""

    def __init__(self, params: StructuredOutputsParams, backend: Callable[[], StructuredOutputBackend]) -> None:
        self._params, self._backend = params, backend
        self._grammar: StructuredOutputGrammar | None = None
        self._accepted = 0
        self._position = -1
        self._since = 0.0
        self.allowed: Future[bytes] = Future()

    def begin(self, state: RequestState, workers: Workers) -> None:
        """Work out what may follow the newest token, unless that was begun before."""
        if self._position == state.num_outputs:
            return
        self._position, self._since = state.num_outputs, time.monotonic()
        tokens = state.tokens[state.prompt_len + self._accepted :]
        self.allowed = workers.begin(lambda: self._work(tokens))

    def outcome(self) -> bytes | SampledToken:
        """The bits of what is allowed; or what happens instead of drawing a token."""
        if not self.allowed.done():
            late = time.monotonic() - self._since > LONGEST_S
            return _failed("GRAMMAR_LIMIT: the grammar takes too long") if late else WAIT
        error = self.allowed.exception()
        if isinstance(error, RequestError):
            return _failed(f"{error.error_code}: {error.message}")
        if error is not None:
            return _failed(f"GRAMMAR_FAILED: the backend raised {type(error).__name__}: {str(error)[:200]}")
        return self.allowed.result()

    def _work(self, tokens: Sequence[int]) -> bytes:
        if self._grammar is None:
            self._grammar = self._backend().compile_grammar(self._params)
        for token in tokens:
            self._grammar.accept_token(token)
            self._accepted += 1
        return self._grammar.allowed_tokens()


class Grammars:
    """Those of a runner's requests; each request's state holds its own.

    Args:
        make_backend: called once, by the first thread that needs it; it may take long, and may raise.
    """

    def __init__(self, make_backend: Callable[[], StructuredOutputBackend]) -> None:
        self._make_backend = make_backend
        self._backend: StructuredOutputBackend | None = None
        self._lock = threading.Lock()
        self._workers = Workers()

    def begin(self, states: Iterable[RequestState]) -> None:
        """Work out what each of these may draw next."""
        for state in states:
            params = state.sampling.structured_outputs
            if params is not None:
                if state.grammar is None:
                    state.grammar = Follower(params, self._made)
                state.grammar.begin(state, self._workers)

    def allowed(self, states: Sequence[RequestState]) -> list[bytes | SampledToken | None]:
        """For each, what `Follower.outcome` says; None where anything may be drawn."""
        pending = [each.grammar.allowed for each in states if each.grammar is not None]
        wait(pending, PATIENCE_S)
        return [None if each.grammar is None else each.grammar.outcome() for each in states]

    def close(self) -> None:
        """End the threads."""
        self._workers.close()

    def _made(self) -> StructuredOutputBackend:
        with self._lock:
            if self._backend is None:
                self._backend = self._make_backend()
            return self._backend


def _failed(error: str) -> SampledToken:
    return SampledToken(-1, error=error)


def _run(tasks: queue.SimpleQueue[Task | None]) -> None:
    while (task := tasks.get()) is not None:
        try:
            task.result.set_result(task.work())
        except BaseException as error:  # a panic of native code is no Exception
            task.result.set_exception(error)
        del task  # or the last answer's grammar would live until there is another


def _end(tasks: queue.SimpleQueue[Task | None], count: int) -> None:
    for _ in range(count):
        tasks.put(None)
