"""An answer's grammar in the engine: in step with the recorded tokens, slow or broken for its own request alone."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import Any

import pytest

from bestiary.api.errors import RequestError
from bestiary.api.sampling import SamplingParams
from bestiary.api.structured import StructuredOutputsParams
from bestiary.engine.plan import NewRequest, SampledToken
from bestiary.engine.request_state import RequestState
from bestiary.engine.structured import follower
from bestiary.engine.structured.follower import WAIT, Grammars

FORM = StructuredOutputsParams(regex="x")


class Grammar:
    """Allows what its number of tokens says; `hold` and `error` are the test's."""

    def __init__(self) -> None:
        self.accepted: list[int] = []
        self.asked = 0
        self.hold: threading.Event | None = None
        self.error: BaseException | None = None

    def allowed_tokens(self) -> bytes:
        self.asked += 1
        if self.hold is not None:
            self.hold.wait(30)
        if self.error is not None:
            raise self.error
        return bytes([len(self.accepted)])

    def accept_token(self, token_id: int) -> None:
        self.accepted.append(token_id)


class Backend:
    def __init__(self) -> None:
        self.grammars: list[Grammar] = []
        self.made = 0
        self.next = Grammar

    def compile_grammar(self, params: StructuredOutputsParams) -> Grammar:
        assert params == FORM
        self.grammars.append(self.next())
        return self.grammars[-1]

    validate_grammar = compile_grammar

    def make(self) -> Backend:
        self.made += 1
        return self


def state(name: str = "r", form: StructuredOutputsParams | None = FORM) -> RequestState:
    return RequestState(NewRequest(name, (5, 6), SamplingParams(structured_outputs=form), 0))


def settled(grammars: Grammars, *states: RequestState) -> list[Any]:
    """What is allowed once every grammar has had its time."""
    for each in states:
        if each.grammar is not None:
            each.grammar.allowed.exception(30)
    return grammars.allowed(states)


@pytest.fixture
def backend() -> Backend:
    return Backend()


@pytest.fixture
def grammars(backend: Backend) -> Any:
    made = Grammars(backend.make)
    yield made
    made.close()


def test_a_grammar_follows_the_recorded_tokens(backend: Backend, grammars: Grammars) -> None:
    one, free = state(), state("free", None)
    for count in range(4):
        grammars.begin([one, free])
        assert settled(grammars, one, free) == [bytes([count]), None]
        one.append(40 + count)
    (grammar,) = backend.grammars
    assert grammar.accepted == [40, 41, 42] and grammar.asked == 4
    assert backend.made == 1 and free.grammar is None


def test_a_step_that_failed_and_is_repeated_changes_nothing(backend: Backend, grammars: Grammars) -> None:
    one = state()
    for _ in range(3):
        grammars.begin([one])
        assert settled(grammars, one) == [b"\0"]
    one.append(9)
    grammars.begin([one])
    assert settled(grammars, one) == [b"\1"]
    assert backend.grammars[0].asked == 2 and backend.grammars[0].accepted == [9]


def test_a_request_told_of_anew_has_a_grammar_of_its_own(backend: Backend, grammars: Grammars) -> None:
    first, again = state(), state()
    first.append(1)
    grammars.begin([first, again])
    assert settled(grammars, first, again) == [b"\1", b"\0"]
    assert len(backend.grammars) == 2


def test_a_slow_grammar_waits_and_no_other_does(backend: Backend, grammars: Grammars) -> None:
    hold, begun = threading.Event(), threading.Event()

    def slow() -> Grammar:
        made = Grammar()
        made.hold = hold
        begun.set()
        return made

    one, other = state("slow"), state("quick")
    backend.next = slow
    grammars.begin([one])
    assert begun.wait(30)
    backend.next = Grammar
    grammars.begin([other])
    assert grammars.allowed([one, other])[0] == WAIT
    assert settled(grammars, other) == [b"\0"]
    grammars.begin([one])
    assert grammars.allowed([one]) == [WAIT]
    hold.set()
    assert settled(grammars, one) == [b"\0"]
    assert backend.grammars[0].asked == 1


def test_one_that_is_never_ready_ends(backend: Backend, grammars: Grammars, monkeypatch: pytest.MonkeyPatch) -> None:
    hold = threading.Event()

    def slow() -> Grammar:
        made = Grammar()
        made.hold = hold
        return made

    backend.next = slow
    one = state()
    grammars.begin([one])
    monkeypatch.setattr(follower, "LONGEST_S", 0.0)
    (found,) = grammars.allowed([one])
    hold.set()
    assert found.error.startswith("GRAMMAR_LIMIT: ")


class Panic(BaseException):
    """As native code's."""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RequestError("too much", code="GRAMMAR_LIMIT"), "GRAMMAR_LIMIT: too much"),
        (ZeroDivisionError("in a plugin"), "GRAMMAR_FAILED: the backend raised ZeroDivisionError: in a plugin"),
        (Panic("in Rust"), "GRAMMAR_FAILED: the backend raised Panic: in Rust"),
    ],
)
def test_one_that_fails_ends_its_request_alone(
    backend: Backend, grammars: Grammars, error: BaseException, words: str
) -> None:
    one, other = state("one"), state("other")
    grammars.begin([one, other])
    settled(grammars, one, other)
    backend.grammars[0].error = error
    for each in (one, other):
        each.append(7)
    grammars.begin([one, other])
    assert sorted(settled(grammars, one, other), key=str) == sorted([SampledToken(-1, error=words), b"\1"], key=str)


def test_a_backend_that_cannot_be_made_is_every_requests_error() -> None:
    def fail() -> Backend:
        raise RequestError("missing", code="STRUCTURED_OUTPUTS_UNAVAILABLE")

    grammars = Grammars(fail)
    one = state()
    grammars.begin([one])
    assert settled(grammars, one) == [SampledToken(-1, error="STRUCTURED_OUTPUTS_UNAVAILABLE: missing")]
    grammars.close()


def alive() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "bestiary-grammar"]


@pytest.mark.parametrize("leave", [lambda grammars: grammars.close(), lambda grammars: None])
def test_threads_end_with_their_owner(backend: Backend, leave: Callable[[Grammars], None]) -> None:
    before = set(alive())
    grammars = Grammars(backend.make)
    mine = set(alive()) - before
    assert len(mine) == follower.THREADS
    one = state()
    grammars.begin([one])
    settled(grammars, one)
    leave(grammars)
    del grammars, one
    gc.collect()
    for each in mine:
        each.join(30)
        assert not each.is_alive()
