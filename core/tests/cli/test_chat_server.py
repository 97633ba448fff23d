"""`bestiary chat --url`: a server's answers, its refusals, and its end in the middle of one."""

from __future__ import annotations

import io
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from bestiary.api.errors import BestiaryError, RequestError, UsageError
from bestiary.api.sampling import SamplingParams
from bestiary.serve.cli.chat.conversation import Answer
from bestiary.serve.cli.chat.sampling import SamplingChoice
from bestiary.serve.cli.chat.served import ServerResponder, sampling_fields
from bestiary.serve.cli.chat.server import Server
from bestiary.serve.cli.streaming import Interrupt, TextWriter

from .conftest import Run
from .openai_server import Script, event, serving

HELLO = [{"role": "user", "content": "hello"}]


def ask(script: Script, params: SamplingParams | None = None, key: str | None = None) -> Answer:
    with serving(script) as url:
        responder = ServerResponder(Server.at(url, key), None)
        return responder.answer(HELLO, SamplingChoice(params or SamplingParams()), None, Interrupt())


def test_an_answer_is_read_as_it_comes() -> None:
    script = Script()
    found = ask(script, SamplingParams(temperature=0.5, top_k=3, stop=["x"], max_tokens=9), key="secret")
    assert (found.text, found.finish_reason) == ("Hello, you.", "stop")
    facts = {name: found.stats[name] for name in ("prompt_tokens", "cached_tokens", "generated_tokens")}
    assert facts == {"prompt_tokens": 7, "cached_tokens": 3, "generated_tokens": 3}
    assert found.stats["time_to_first_token_s"] <= found.stats["total_s"]
    assert script.paths == ["/v1/models", "/v1/chat/completions"] and script.keys == ["Bearer secret"] * 2
    assert script.bodies == [
        {"model": "beast", "messages": HELLO, "stream": True, "stream_options": {"include_usage": True},
         "temperature": 0.5, "top_k": 3, "stop": ["x"], "max_tokens": 9}
    ]  # fmt: skip


class Heard:
    """A writer that notes what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    def think(self, text: str) -> None:
        self.told.append(("think", text))

    def update(self, text: str) -> None:
        self.told.append(("update", text))

    def end(self) -> None:
        self.told.append(("end", ""))


def test_reasoning_comes_before_the_answer_and_is_no_part_of_it() -> None:
    deltas = [{"role": "assistant", "content": ""}, {"reasoning_content": "Hm"}, {"reasoning_content": "m."},
              {"content": "Yes"}, {"content": "."}]  # fmt: skip
    raw = b"".join(event({"choices": [{"delta": delta, "finish_reason": None}]}) for delta in deltas)
    raw += event({"choices": [{"delta": {}, "finish_reason": "stop"}]})
    heard = Heard()
    with serving(Script(raw=raw)) as url:
        responder = ServerResponder(Server.at(url), None)
        found = responder.answer(HELLO, SamplingChoice(SamplingParams()), heard, Interrupt())
    assert (found.text, found.reasoning, found.finish_reason) == ("Yes.", "Hmm.", "stop")
    told = list(dict.fromkeys(heard.told))
    assert told == [("think", "Hm"), ("think", "Hmm."), ("update", "Yes"), ("update", "Yes.")]


@pytest.mark.parametrize(
    ("terminal", "shown"), [(True, "\x1b[2mHm\x1b[0m\x1b[2mm.\x1b[0m\n\nYes.\n"), (False, "Yes.\n")]
)
def test_reasoning_is_dimmed_on_a_terminal_and_left_out_elsewhere(terminal: bool, shown: str) -> None:
    class Out(io.StringIO):
        def isatty(self) -> bool:
            return terminal

    writer = TextWriter(out := Out())
    for thought in ("Hm", "Hmm."):
        writer.think(thought)
    for text in ("Yes", "Yes."):
        writer.update(text)
    writer.end()
    assert out.getvalue() == shown


def test_a_server_hears_of_nothing_that_was_not_asked_for() -> None:
    assert sampling_fields(SamplingChoice(SamplingParams(max_tokens=1024), default_length=True)) == {"temperature": 1.0}
    assert sampling_fields(SamplingChoice(SamplingParams(max_tokens=None))) == {"temperature": 1.0}


def test_the_first_model_answers_and_its_context_is_known() -> None:
    models: list[dict[str, Any]] = [{"id": "one", "max_model_len": 77}, {"id": "two"}]
    with serving(Script(models=models)) as url:
        first, second = (ServerResponder(Server.at(url), name) for name in (None, "two"))
    assert (first.name, first.context) == ("one", 77)
    assert (second.name, second.context) == ("two", None)


def test_a_url_may_end_in_v1_or_have_a_path() -> None:
    script = Script()
    with serving(script) as url:
        for suffix in ("", "/", "/v1", "/v1/", "/prefix/v1", "/prefix"):
            Server.at(url + suffix).models()
    assert script.paths == ["/v1/models"] * 4 + ["/prefix/v1/models"] * 2


@pytest.mark.parametrize(
    "url",
    ["host:8000", "ftp://host", "http://", "http://u:p@host", "http://host:x", "http://host:99999", "http://a b", ""],
)
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="no server's URL"):
        Server.at(url)


@pytest.mark.parametrize(
    ("script", "code", "words"),
    [
        (Script(status=400, error={"message": "too long", "code": "context_length_exceeded", "param": "messages"}),
         "context_length_exceeded", "too long"),
        (Script(status=503, error={"message": "later", "code": "QUEUE_FULL"}), "QUEUE_FULL", "later"),
        (Script(status=500, error=b"<html>oops"), "BAD_REQUEST", "status 500"),
        (Script(status=400, error={"message": "m", "code": 7, "param": ["x"]}), "BAD_REQUEST", "m"),
        (Script(broken=True), "SERVER_UNREACHABLE", "broke off"),
        (Script(raw=b"data: nonsense\n\n"), "BAD_REQUEST", "no event"),
        (Script(raw=b"data: [1]\n\n"), "BAD_REQUEST", "no event"),
        (Script(raw=b"data: {}\n\n"), "SERVER_UNREACHABLE", "no end"),
        (Script(raw=event({"error": {"message": "the engine died", "code": "engine_dead"}})), "engine_dead", "died"),
    ],
    ids=["400", "503", "html", "odd", "broken", "nonsense", "no object", "no end", "error event"],
)  # fmt: skip
def test_what_goes_wrong_is_a_refused_request(script: Script, code: str, words: str) -> None:
    with pytest.raises(RequestError, match=words) as raised:
        ask(script)
    assert raised.value.error_code == code


def test_nobody_there_is_said_with_the_url(bestiary: Run) -> None:
    with serving(Script()) as url:
        gone = url
    result = bestiary("chat", "--url", gone)
    assert result.code == 1
    assert "SERVER_UNREACHABLE" in result.err and gone in result.err and "bestiary serve" in result.err


def test_ctrl_c_closes_the_connection_and_keeps_the_text() -> None:
    script, interrupt = Script(hold=2), Interrupt()

    def press() -> None:
        script.held.wait(60)
        interrupt.pressed = True

    with serving(script) as url:
        responder = ServerResponder(Server.at(url), None)
        threading.Thread(target=press).start()
        found = responder.answer(HELLO, SamplingChoice(SamplingParams()), None, interrupt)
        assert (found.finish_reason, found.interrupted) == ("abort", True)
        assert "Hello, you.".startswith(found.text)
        assert script.left.wait(60)  # the server notices, and can stop


def test_a_conversation_with_a_server_from_a_pipe(bestiary: Run, tmp_path: Path) -> None:
    script = Script(answers=[["one"], ["two"]])
    with serving(script) as url:
        result = bestiary("chat", "--url", url, "--json", "--system", "s", stdin="hi\n/nope\nagain\n")
    first, wrong, second = map(json.loads, result.out.splitlines())
    assert (first["answer"], second["answer"]) == ("one", "two") and "/nope" in wrong["error"]["message"]
    assert [each["content"] for each in script.bodies[1]["messages"]] == ["s", "hi", "one", "again"]
    assert result.code == 0


def test_a_refusal_in_a_pipe_is_exit_1_and_the_rest_is_answered(bestiary: Run) -> None:
    with serving(Script(status=400, error={"message": "no"})) as url:
        result = bestiary("chat", "--url", url, stdin="hi\nthere\n")
    assert (result.code, result.err.count("the server says: no")) == (1, 2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Missing MODEL"),
        (["m", "--api-key", "k"], "--api-key needs --url"),
        (["--url", "http://127.0.0.1:9", "--dry-run"], "--dry-run"),
        (["--url", "http://127.0.0.1:9", "--dtype", "float32", "--lora-name", "x"], "--dtype, --lora-name"),
        (["--url", "http://127.0.0.1:9", "--api-key", "ä"], "printable ASCII"),
    ],
)
def test_what_does_not_go_together_is_said(arguments: list[str], words: str, bestiary: Run) -> None:
    result = bestiary("chat", *arguments)
    assert result.code == 1 and words in result.err


def test_a_key_is_not_in_what_is_printed() -> None:
    assert "secret" not in repr(Server.at("http://host", "secret"))


def test_a_server_without_models_is_an_error() -> None:
    with serving(Script(models=[])) as url, pytest.raises(BestiaryError, match="has no model"):
        ServerResponder(Server.at(url), None)
