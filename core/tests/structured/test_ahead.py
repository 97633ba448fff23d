"""Forms where steps are begun before the tokens of those before them are known: the same answers, and nobody waits."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from bestiary import LLM, SamplingParams, StructuredOutputsParams
from bestiary.api.errors import EngineError
from bestiary.api.outputs import RequestOutput
from bestiary.engine import pending
from bestiary.engine.structured.follower import Follower

PROMPT = "the quick brown fox jumps over the lazy dog, and then "
FORMS = [None, {"regex": r"[A-Z][a-z]{3,9} is \d{1,3} years"}, {"choice": ["yes", "no"]}, {"regex": "(ab){3,9}c"}]


def params(form: dict[str, Any] | None, **others: Any) -> SamplingParams:
    given = {"temperature": 0.0, "max_tokens": 40} | others
    return SamplingParams(structured_outputs=None if form is None else StructuredOutputsParams(**form), **given)


@pytest.fixture(scope="module")
def ahead(engine: Callable[..., LLM]) -> LLM:
    """Its tokens stay where they are drawn until they are collected, as on a GPU."""
    llm = engine(async_scheduling=True)
    llm.engine.executor.runner.defers = True  # type: ignore[attr-defined]
    return llm


def tokens(found: list[RequestOutput]) -> list[tuple[list[int], str | None]]:
    return [(one.token_ids, one.finish_reason) for each in found for one in each.outputs]


@pytest.mark.parametrize("others", [{}, {"repetition_penalty": 1.2, "min_tokens": 4, "logprobs": 1}], ids=str)
def test_the_same_answers(llm: LLM, ahead: LLM, others: dict[str, Any]) -> None:
    asked = [params(form, **others) for form in FORMS]
    launched = []
    launch = ahead.engine.lanes.lanes[0].launch_ahead
    ahead.engine.lanes.lanes[0].launch_ahead = lambda executor: launched.append(launch(executor))  # type: ignore
    found = ahead.generate([PROMPT] * len(FORMS), asked, use_tqdm=False)
    del ahead.engine.lanes.lanes[0].launch_ahead
    assert tokens(found) == tokens(llm.generate([PROMPT] * len(FORMS), asked, use_tqdm=False))
    assert sum(map(bool, launched)) > len(launched) / 2


def test_draws_depend_on_their_request_alone(ahead: LLM) -> None:
    asked = [params(form, temperature=1.2, seed=seed, n=2) for seed, form in enumerate(FORMS)]
    together = ahead.generate([PROMPT] * len(FORMS), asked, use_tqdm=False)
    assert tokens(together) == [each for one in asked for each in tokens(ahead.generate(PROMPT, one, use_tqdm=False))]


@pytest.mark.parametrize("at", [0, 3])
def test_a_grammar_that_is_not_ready_is_waited_for(ahead: LLM, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """What was begun upon the token that did not come is nobody's."""
    asked = [params(None, max_tokens=20), params(FORMS[1])]
    expected = tokens(ahead.generate([PROMPT] * 2, asked, use_tqdm=False))
    work, hold, begun, calls = Follower._work, threading.Event(), threading.Event(), []

    def held(self: Follower, given: Any) -> bytes:
        calls.append(given)
        if len(calls) > at:
            begun.set()
            hold.wait(60)
        return work(self, given)

    monkeypatch.setattr(Follower, "_work", held)
    prompt = ahead.get_tokenizer().encode(PROMPT)
    free, formed = (ahead._outputs.add(str(n), None, prompt, each) for n, each in enumerate(asked))
    while not free.finished:
        ahead._step()
    assert begun.is_set() and len(formed.outputs[0].token_ids) == at
    hold.set()
    while not formed.finished:
        ahead._step()
    assert tokens([free, formed]) == expected


@pytest.mark.parametrize("at", [1, 2, 5])
def test_a_draw_that_fails_is_its_own_step_s(ahead: LLM, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Those of the step before it are told, and it is computed again."""
    asked = params(FORMS[1])
    expected = tokens(ahead.generate(PROMPT, asked, use_tqdm=False))
    queue, calls, codes = pending.queue, [], []

    def failing(*given: Any, **more: Any) -> Any:
        calls.append(given)
        if len(calls) == at:
            raise ZeroDivisionError("in a draw")
        return queue(*given, **more)

    monkeypatch.setattr(pending, "queue", failing)
    request = ahead._outputs.add("again", None, ahead.get_tokenizer().encode(PROMPT), asked)
    while not request.finished and len(codes) < 2:
        try:
            ahead._step()
        except EngineError as error:
            codes.append(error.error_code)
    assert codes == ["MODEL_FAILED"]
    assert tokens([request]) == expected


@pytest.mark.gpu
def test_on_a_gpu(llm: LLM, engine: Callable[..., LLM]) -> None:
    asked = [params(form, **each) for form in FORMS for each in ({}, {"repetition_penalty": 1.2, "logprobs": 2})]
    found = engine(device="cuda").generate([PROMPT] * len(asked), asked, use_tqdm=False)
    assert tokens(found) == tokens(llm.generate([PROMPT] * len(asked), asked, use_tqdm=False))
