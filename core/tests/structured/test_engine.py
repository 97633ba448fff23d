"""Forms in the engine: every answer has its form, whatever happens to its request, and no other answer changes."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest

from bestiary import LLM, SamplingParams, StructuredOutputsParams
from bestiary.api.errors import EngineError, RequestError
from bestiary.api.outputs import RequestOutput
from bestiary.engine.structured import llguidance
from bestiary.engine.structured.follower import Follower

from .vocabularies import EOS

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "size": {"type": "integer", "minimum": 0, "maximum": 9999},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 3},
    },
    "required": ["name", "size", "tags"],
    "additionalProperties": False,
}
JSON = {"json": SCHEMA, "disable_any_whitespace": True}
PROMPT = "the quick brown fox jumps over the lazy dog, and then "


def params(form: dict[str, Any] | None, **others: Any) -> SamplingParams:
    given = {"temperature": 0.9, "seed": 5, "max_tokens": 150} | others
    return SamplingParams(structured_outputs=None if form is None else StructuredOutputsParams(**form), **given)


def run(llm: LLM, prompts: Any, given: Any) -> list[RequestOutput]:
    return llm.generate(prompts, given, use_tqdm=False)


def check(text: str, form: dict[str, Any]) -> None:
    """Raises where the text has not the form."""
    if "json" in form:
        jsonschema.validate(json.loads(text), form["json"])
    elif "json_object" in form:
        assert isinstance(json.loads(text), dict)
    elif "regex" in form:
        assert re.fullmatch(form["regex"], text)
    elif "choice" in form:
        assert text in form["choice"]
    else:
        assert re.fullmatch(r"(\((ab?)+\))+", text)


FORMS: list[dict[str, Any]] = [
    JSON,
    {"json": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4}},
    {"regex": r"[A-Z][a-z]{3,9} is \d{1,3} years"},
    {"choice": ["yes", "no", "neither, nor"]},
    {
        "grammar": 'start: group~1..4\ngroup: "(" ("a" "b"?)~1..5 ")"'.replace("~1..4", "{1,4}").replace(
            "~1..5", "{1,5}"
        )
    },
]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: next(iter(form)))
@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_answers_have_their_form(llm: LLM, form: dict[str, Any], temperature: float) -> None:
    (output,) = run(llm, PROMPT, params(form, temperature=temperature, n=1 if temperature == 0 else 4))
    for each in output.outputs:
        assert (each.finish_reason, each.stop_reason) == ("stop", None)
        assert each.token_ids[-1] == EOS
        check(each.text, form)


def test_a_json_object(llm: LLM) -> None:
    stop = {"logit_bias": {llm.get_tokenizer().encode("}")[0]: 100.0}}
    (output,) = run(llm, PROMPT, params({"json_object": True}, **stop))
    check(output.outputs[0].text, {"json_object": True})


def test_the_rest_of_the_batch_is_as_it_would_be_alone(llm: LLM) -> None:
    free = [params(None, seed=seed, max_tokens=40, logprobs=2) for seed in range(3)]
    alone = [run(llm, PROMPT, each)[0].outputs[0] for each in free]
    together = run(llm, [PROMPT] * 6, [*free, params(JSON), params({"regex": "x{30}"}), params(FORMS[3])])
    for one, other in zip(alone, together, strict=False):
        assert (one.token_ids, one.text) == (other.outputs[0].token_ids, other.outputs[0].text)


def test_log_probabilities_are_the_models_own(llm: LLM) -> None:
    (output,) = run(llm, PROMPT, params({"choice": ["yes", "no"]}, logprobs=3, temperature=0))
    (free,) = run(llm, PROMPT, params(None, logprobs=3, temperature=0, max_tokens=1))
    ours, theirs = output.outputs[0].logprobs, free.outputs[0].logprobs
    assert ours is not None and theirs is not None
    first = output.outputs[0].token_ids[0]
    assert ours[0][first].rank > 1, "the model would rather say something else"
    for token in ours[0].keys() & theirs[0].keys():
        assert ours[0][token].logprob == pytest.approx(theirs[0][token].logprob, abs=1e-5)


# --- G11: preemption, prefix cache, pieces of prompts, several answers ------------------------------------------------

TIGHT = {"num_gpu_blocks_override": 34, "block_size": 8, "max_num_seqs": 8, "max_num_batched_tokens": 24}
ALONE = {"enable_prefix_caching": False, "max_num_seqs": 1}


def test_the_form_and_the_answer_survive_whatever_the_scheduler_does(engine: Callable[..., LLM]) -> None:
    """Seeded answers of an engine short of blocks, which preempts, computes prompts in pieces and shares prefixes,
    equal those of one that computes one request at a time."""
    forms = [JSON, FORMS[2], JSON, None]
    asked = [
        (PROMPT * 2 + "abcd"[seed], params(form, n=2, seed=seed, temperature=1.1, max_tokens=80))
        for seed, form in enumerate(forms)
    ]
    tight, alone = engine(**TIGHT), engine(**ALONE)
    found = run(tight, [prompt for prompt, _ in asked], [each for _, each in asked])
    assert sum(output.metrics.preemptions for output in found) > 0
    assert sum(output.metrics.cached_tokens for output in found) > 0
    for (prompt, given), form, output in zip(asked, forms, found, strict=True):
        (expected,) = run(alone, prompt, given)
        for one, other in zip(output.outputs, expected.outputs, strict=True):
            assert (one.token_ids, one.finish_reason) == (other.token_ids, other.finish_reason)
            if form is not None:
                assert one.finish_reason == "stop"
                check(one.text, form)


def test_a_step_that_raised_leaves_a_grammar_right(engine: Callable[..., LLM], monkeypatch: pytest.MonkeyPatch) -> None:
    llm = engine()
    expected = run(llm, PROMPT, params(JSON))[0].outputs[0]
    runner: Any = llm.engine.executor.runner  # type: ignore[attr-defined]
    record, failures, codes = type(runner).record, [], []

    def failing(self: Any, batch: Any, result: Any) -> None:
        if len(failures) < 5 and len(failures) < len(result.sampled) * 5:
            failures.append(result)
            raise ZeroDivisionError("after the draw")
        record(self, batch, result)

    monkeypatch.setattr(type(runner), "record", failing)
    llm.engine.use_tokenizer(llm._forms.tokenizer_json)
    request = llm._outputs.add("again", None, llm.get_tokenizer().encode(PROMPT), params(JSON))
    while not request.finished:
        try:
            llm._step()
        except EngineError as error:
            codes.append(error.error_code)
    assert codes == ["MODEL_FAILED"] * 5
    assert request.outputs[0].token_ids == expected.token_ids


def test_a_grammar_that_is_not_ready_is_waited_for(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its request alone waits; a step computes its newest token again; the answer is the same."""
    expected = run(llm, PROMPT, params(JSON, prompt_logprobs=1))[0]
    plain = run(llm, PROMPT, params(None, max_tokens=20))[0].outputs[0]
    work, hold, begun = Follower._work, threading.Event(), threading.Event()

    def held(self: Follower, tokens: Any) -> bytes:
        begun.set()
        hold.wait(60)
        return work(self, tokens)

    monkeypatch.setattr(Follower, "_work", held)
    free = llm._outputs.add("free", None, llm.get_tokenizer().encode(PROMPT), params(None, max_tokens=20))
    formed = llm._outputs.add("formed", None, llm.get_tokenizer().encode(PROMPT), params(JSON, prompt_logprobs=1))
    while not free.finished:
        llm._step()
    assert begun.is_set() and free.outputs[0].token_ids == plain.token_ids
    assert formed.outputs[0].token_ids == []
    hold.set()
    while not formed.finished:
        llm._step()
    assert formed.outputs[0].token_ids == expected.outputs[0].token_ids
    assert formed.prompt_logprobs is not None and expected.prompt_logprobs is not None
    assert len(formed.prompt_logprobs) == len(expected.prompt_logprobs)


def test_an_aborted_answer_is_forgotten(llm: LLM) -> None:
    stream = llm.stream(PROMPT, params(JSON))
    request = next(stream)
    stream.close()  # type: ignore[attr-defined]
    run(llm, PROMPT, params(None, max_tokens=1))
    assert not llm.engine.has_unfinished_requests
    assert request.request_id not in llm.engine.executor.runner.states  # type: ignore[attr-defined]


# --- the end of an answer ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "others",
    [
        {"ignore_eos": True},
        {"min_tokens": 100},
        {"bad_token_ids": [EOS]},
        {"ignore_eos": True, "stop_token_ids": [EOS]},
    ],
)
def test_where_no_end_can_be_drawn_the_answer_ends_without(llm: LLM, others: dict[str, Any]) -> None:
    (output,) = run(llm, PROMPT, params({"choice": ["yes", "no"]}, logprobs=0, **others))
    answer = output.outputs[0]
    assert answer.text in ("yes", "no")
    assert (answer.finish_reason, answer.stop_reason) == ("stop", None)
    assert EOS not in answer.token_ids
    assert answer.logprobs is not None and len(answer.logprobs) == len(answer.token_ids)


def test_the_end_waits_for_min_tokens_where_the_form_goes_on(llm: LLM) -> None:
    for others in ({"min_tokens": 12}, {"ignore_eos": True, "max_tokens": 14}):
        (output,) = run(llm, PROMPT, params({"regex": "[ab]*"}, logit_bias={EOS: 100.0}, **others))
        assert len(output.outputs[0].token_ids) in (13, 14)
        assert re.fullmatch("[ab]{12,}", output.outputs[0].text)


def test_an_answer_may_be_empty(llm: LLM) -> None:
    for others in ({}, {"ignore_eos": True, "prompt_logprobs": 1}):
        (output,) = run(llm, PROMPT, params({"regex": "(a{2}){0}"}, **others))
        assert (output.outputs[0].text, output.outputs[0].finish_reason) == ("", "stop")
    assert output.prompt_logprobs is not None and len(output.prompt_logprobs) == len(output.prompt_token_ids)


def test_parameters_that_forbid_what_the_form_wants_end_the_answer_with_an_error(llm: LLM) -> None:
    y = llm.get_tokenizer().encode("y")[0]
    outputs = run(
        llm, [PROMPT] * 2, [params({"choice": ["yes"]}, bad_token_ids=[y]), params({"choice": ["yes"]}, seed=1)]
    )
    assert outputs[0].outputs[0].finish_reason == "error"
    assert str(outputs[0].outputs[0].stop_reason).startswith("NOTHING_TO_DRAW: ")
    assert outputs[1].outputs[0].text == "yes"


def test_stop_strings_and_lengths_end_it_before(llm: LLM) -> None:
    (output,) = run(llm, PROMPT, params({"regex": "abc{50}"}, stop=["cc"]))
    assert (output.outputs[0].text, output.outputs[0].stop_reason) == ("ab", "cc")
    (output,) = run(llm, PROMPT, params({"regex": "abc{50}"}, max_tokens=7))
    assert (output.outputs[0].text, output.outputs[0].finish_reason) == ("abccccc", "length")


# --- refusals and failures --------------------------------------------------------------------------------------------


def test_a_bad_form_is_refused_before_anything_runs(llm: LLM) -> None:
    with pytest.raises(RequestError, match="prompt 1: ") as caught:
        run(llm, ["a", "b"], [params(JSON), params({"json": {"type": "objekt"}})])
    assert (caught.value.error_code, caught.value.field) == ("BAD_SCHEMA", "structured_outputs.json")
    assert not llm.engine.has_unfinished_requests


def test_without_a_tokenizer_no_answer_has_a_form(engine: Callable[..., LLM]) -> None:
    llm = engine(skip_tokenizer_init=True)
    with pytest.raises(RequestError) as caught:
        run(llm, [[5, 6]], params(JSON))
    assert caught.value.error_code == "STRUCTURED_OUTPUTS_UNAVAILABLE"
    with pytest.raises(RequestError) as caught:
        llm.engine.add_request("r", [5, 6], params(JSON))
    assert caught.value.error_code == "STRUCTURED_OUTPUTS_UNAVAILABLE"


def test_one_that_fails_in_the_engine_fails_alone(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """G10: tried and found well, and refused all the same; and one that grows beyond its limits in the middle."""
    compile_grammar = llguidance.LLGuidanceBackend.compile_grammar

    class Tiring:
        def __init__(self, grammar: Any) -> None:
            self.grammar, self.left = grammar, 4

        def allowed_tokens(self) -> bytes:
            self.left -= 1
            if not self.left:
                raise RequestError("the schema: lexer error", code="GRAMMAR_LIMIT")
            return self.grammar.allowed_tokens()

        def accept_token(self, token_id: int) -> None:
            self.grammar.accept_token(token_id)

    def moody(self: Any, given: StructuredOutputsParams) -> Any:
        if given.regex == "refused":
            raise RequestError("the regular expression: not today", code="BAD_REGEX")
        made = compile_grammar(self, given)
        return Tiring(made) if given.regex == "tiring" else made

    monkeypatch.setattr(llguidance.LLGuidanceBackend, "compile_grammar", moody)
    forms = [{"regex": "refused"}, JSON, {"regex": "tiring"}, None]
    (expected,) = run(llm, PROMPT, params(None, max_tokens=30))
    refused, formed, tiring, free = (
        each.outputs[0]
        for each in run(llm, [PROMPT] * 4, [params(form, max_tokens=150 if form else 30) for form in forms])
    )
    assert (refused.finish_reason, refused.text) == ("error", "")
    assert refused.stop_reason == "BAD_REGEX: the regular expression: not today"
    assert (tiring.finish_reason, tiring.stop_reason) == ("error", "GRAMMAR_LIMIT: the schema: lexer error")
    assert tiring.text == "tir"
    check(formed.text, JSON)
    assert free.token_ids == expected.outputs[0].token_ids
    assert llm.engine.stats().kv_cache.used_blocks == 0


def test_a_runaway_grammar_ends_its_own_answer(llm: LLM) -> None:
    """What is well at its beginning, and more than the limits allow later."""
    later = {"grammar": 'start: /[b-y]{12}/ x{1,1000}\nx: y{1,1000}\ny: z{1,1000}\nz: "a"'}
    bad, good = (each.outputs[0] for each in run(llm, [PROMPT] * 2, [params(later, ignore_eos=True), params(FORMS[2])]))
    assert bad.finish_reason == "error"
    assert str(bad.stop_reason).startswith("GRAMMAR_LIMIT: ")
    check(good.text, FORMS[2])


def test_an_unknown_backend_is_refused_at_the_start(checkpoint: Any) -> None:
    with pytest.raises(Exception, match="did you mean 'llguidance'"):
        LLM(str(checkpoint), structured_outputs_backend="llguidence", progress=False)
