"""What /commands do to a conversation, whoever answers; histories and transcripts on disks of every kind."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import pytest

from bestiary.api.errors import RequestError, UsageError
from bestiary.api.sampling import SamplingParams
from bestiary.serve.cli.chat import history as history_module
from bestiary.serve.cli.chat.command import chat
from bestiary.serve.cli.chat.commands import COMMANDS, Chat, complete, help_text
from bestiary.serve.cli.chat.conversation import Answer, Conversation, Message
from bestiary.serve.cli.chat.faces import TextFace
from bestiary.serve.cli.chat.history import MOST, History, state_directory
from bestiary.serve.cli.chat.loop import converse
from bestiary.serve.cli.chat.sampling import SamplingChoice
from bestiary.serve.cli.chat.transcript import load
from bestiary.serve.cli.streaming import Interrupt, Writer


class Parrot:
    """Answers with its number and the last message; refuses what begins with "no"."""

    name = "parrot"
    context: int | None = 100

    def __init__(self) -> None:
        self.asked: list[list[Message]] = []

    def answer(
        self, messages: Sequence[Message], choice: SamplingChoice, writer: Writer | None, interrupt: Interrupt
    ) -> Answer:
        self.asked.append(list(messages))
        last = messages[-1]["content"]
        if last.startswith("no"):
            raise RequestError("it does not fit", code="CONTEXT_LENGTH_EXCEEDED")
        text = f"{len(self.asked)}: {last}"
        if writer is not None:
            writer.update(text)
        stats = {"prompt_tokens": 10, "cached_tokens": 4, "generated_tokens": 3, "time_to_first_token_s": 0.1,
                 "total_s": 0.5, "tokens_per_s": 5.0}  # fmt: skip
        return Answer(text, "stop", stats)


class Lines:
    def __init__(self, *lines: str) -> None:
        self._lines = iter(lines)

    def next(self) -> str | None:
        return next(self._lines, None)


Talk = Callable[..., tuple[Conversation, int]]


@pytest.fixture
def talk(capsys: pytest.CaptureFixture[str]) -> Talk:
    """Have a conversation of these lines; returns it, and how many messages were refused."""

    def hold(*lines: str, system: str | None = None, params: SamplingParams | None = None) -> tuple[Conversation, int]:
        with chat.make_context("chat", ["parrot"]):
            choice = SamplingChoice.of_command(click.get_current_context(), params or SamplingParams(temperature=0.7))
            conversation = Conversation(Parrot(), choice, system)
            return conversation, converse(Chat(conversation, TextFace(quiet=True, plain=True)), Lines(*lines))

    return hold


def said(conversation: Conversation) -> list[str]:
    return [each["content"] for each in conversation.messages]


def test_undo_takes_back_the_last_exchange(talk: Talk, capsys: pytest.CaptureFixture[str]) -> None:
    conversation, _ = talk("one", "two", "/undo", system="s")
    assert said(conversation) == ["s", "one", "1: one"]
    assert "taken back: two" in capsys.readouterr().err
    conversation, refused = talk("/undo")
    assert (conversation.messages, refused) == ([], 0)
    assert "nothing has been said yet" in capsys.readouterr().err


def test_regenerate_answers_the_last_message_anew(talk: Talk, capsys: pytest.CaptureFixture[str]) -> None:
    conversation, _ = talk("one", "two", "/regenerate", "/regenerate", system="s")
    assert said(conversation) == ["s", "one", "1: one", "two", "4: two"]
    assert isinstance(conversation.responder, Parrot)
    assert conversation.responder.asked[2] == conversation.responder.asked[1]
    assert "same" not in capsys.readouterr().err
    talk("one", "/regenerate", params=SamplingParams(temperature=0))
    assert "the answer will be the same: /set changes temperature 0" in capsys.readouterr().err
    talk("one", "/regenerate", params=SamplingParams(seed=5))
    assert "seed 5" in capsys.readouterr().err


def test_a_refused_message_leaves_the_conversation_as_it_was(talk: Talk, capsys: pytest.CaptureFixture[str]) -> None:
    conversation, refused = talk("one", "no", "two")
    assert (said(conversation), refused) == (["one", "1: one", "two", "3: two"], 1)
    assert "/undo takes back" in capsys.readouterr().err


def test_the_system_message_is_changed_shown_and_removed(talk: Talk, capsys: pytest.CaptureFixture[str]) -> None:
    conversation, _ = talk("/system", "one", "/system be terse", "/system", "/reset", "two")
    assert said(conversation) == ["be terse", "two", "2: two"]
    shown = capsys.readouterr().err
    assert "there is no system message" in shown and shown.count("system message: be terse") == 2
    conversation, _ = talk("one", "/system -", system="s")
    assert said(conversation) == ["one", "1: one"]


def test_parameters_are_set_shown_and_refused(talk: Talk, capsys: pytest.CaptureFixture[str]) -> None:
    conversation, refused = talk(
        "/set temperature 0.2", "/set top-k 5", "/set max_tokens none", '/set stop ["a b", "c"]', "/set seed 7",
        "/set ignore_eos true", "/set temperature", "/set tempratur 1", "/set temperature hot", "/set top_p 7", "/set",
    )  # fmt: skip
    params = conversation.choice.params
    assert (params.temperature, params.top_k, params.max_tokens, params.seed) == (0.2, 5, None, 7)
    assert (tuple(params.stop), params.ignore_eos, refused) == (("a b", "c"), True, 0)
    shown = capsys.readouterr().err
    for words in (
        "temperature = 0.2",
        "did you mean temperature?",
        "'hot' is not a valid float",
        "top_p",
        "max_tokens",
    ):
        assert words in shown
    assert params.top_p == 1.0


def test_a_length_that_was_set_gives_way_no_more(talk: Talk) -> None:
    conversation, _ = talk("one")
    assert conversation.choice.default_length
    conversation, _ = talk("/set max_tokens 20")
    assert not conversation.choice.default_length


def test_stats_add_up(talk: Talk, capsys: pytest.CaptureFixture[str]) -> None:
    talk("/stats", "one", "two", "/stats")
    shown = capsys.readouterr().err
    assert "no answer yet" in shown and "2 answers, 6 tokens in 1.0 s" in shown
    assert "the last used 13 of 100 tokens of context, 4 of them from the prefix cache" in shown


def test_a_conversation_is_saved_and_gone_on_with(talk: Talk, tmp_path: Path) -> None:
    file = tmp_path / "a b.json"
    talk("one", f"/save {file}", system="s")
    document = json.loads(file.read_text("utf-8"))
    assert (document["model"], document["sampling"]["temperature"]) == ("parrot", 0.7)
    conversation, _ = talk("forgotten", f"/load {file}", "two", "/reset")
    assert conversation.responder.asked[-1] == [*document["messages"], {"role": "user", "content": "two"}]  # type: ignore[attr-defined]
    assert said(conversation) == ["s"]
    plain = tmp_path / "plain.json"
    plain.write_text(json.dumps([{"role": "user", "content": "é", "name": "x"}]))
    conversation, _ = talk(f"/load {plain}", "/regenerate")
    assert said(conversation) == ["é", "1: é"]


def test_markdown_is_written_for_people(talk: Talk, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "talk.md"
    talk("one", f"/save {file}", f"/load {file}")
    assert file.read_text("utf-8") == "# parrot\n\n## User\n\none\n\n## Assistant\n\n1: one\n"
    assert "is no conversation in JSON" in capsys.readouterr().err


def test_a_file_that_is_there_is_not_written_over(
    talk: Talk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "talk.json"
    file.write_text("mine")
    talk("one", f"/save {file}")
    assert file.read_text() == "mine" and "/save! " in capsys.readouterr().err
    talk("one", f"/save! {file}")
    assert json.loads(file.read_text())["messages"]
    assert [each.name for each in tmp_path.iterdir()] == ["talk.json"]


@pytest.mark.parametrize("where", ["nowhere/talk.json", "file/talk.json", "folder"])
def test_what_cannot_be_written_is_said_and_the_conversation_goes_on(
    where: str, talk: Talk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    conversation, refused = talk("one", f"/save! {tmp_path / where}", "/save", "two")
    assert (len(conversation.messages), refused) == (4, 0)
    shown = capsys.readouterr().err
    assert "cannot be written" in shown and "a file must be named" in shown


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no conversation in JSON"),
        ("[" * 100_000, "no conversation in JSON"),
        ("{}", "no conversation"),
        ("[]", "no conversation"),
        ('[{"role": "tool", "content": "x"}]', "message 0"),
        ('[{"role": "user", "content": "x"}, {"role": "system", "content": "x"}]', "message 1"),
        ('[{"role": "user", "content": ["x"]}]', "message 0"),
        ('["x"]', "message 0"),
    ],
)
def test_what_is_no_conversation_is_not_loaded(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    file.write_text(text)
    with pytest.raises(UsageError, match=words):
        load(file)


def test_help_names_every_command() -> None:
    assert [line.split()[0] for line in help_text().splitlines()][: len(COMMANDS)] == list(COMMANDS)


def test_completion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert complete("", "/re") == ["/regenerate ", "/reset "]
    assert complete("", "hello") == []
    assert complete("say ", "/re") == []
    monkeypatch.chdir(tmp_path)
    (tmp_path / "talk one.json").touch()
    (tmp_path / "talks").mkdir()
    assert complete("/load ", "ta") == ["talk one.json", "talks/"]
    assert complete("/save ", "x[") == []


# --- history ----------------------------------------------------------------------------------------------------------


def quiet(text: str) -> None:
    raise AssertionError(text)


def test_what_was_typed_is_there_the_next_time(tmp_path: Path) -> None:
    path = tmp_path / "state/bestiary/chat_history"
    first = History(path, quiet)
    for text in ("one", "one", "two\nlines", "", "dré"):
        first.add(text)
    assert History(path, quiet).items == ["one", "two\nlines", "dré"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_long_history_is_cut_and_a_damaged_one_is_read(tmp_path: Path) -> None:
    path = tmp_path / "chat_history"
    path.write_bytes(b'"cut\n\xff\n3\n"good"\n' + b"".join(b'"%d"\n' % number for number in range(3 * MOST)))
    found = History(path, quiet)
    assert len(found.items) == MOST and found.items[-1] == str(3 * MOST - 1)
    for number in range(MOST + 1):
        found.add(f"new {number}")
    assert len(path.read_text().splitlines()) == MOST
    assert [each.name for each in tmp_path.iterdir()] == ["chat_history"]


def trouble(tmp_path: Path, kind: str) -> Path:
    if kind == "full":
        return Path("/dev/full")
    if kind == "a file in the way":
        (tmp_path / "state").touch()
    return tmp_path / "state/chat_history"


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("full", marks=pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device")),
        "a file in the way",
        "read-only",
    ],
)
def test_a_disk_that_keeps_nothing_is_one_notice(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "read-only":
        monkeypatch.setattr(history_module.os, "open", _read_only)
    notices: list[str] = []
    found = History(trouble(tmp_path, kind), notices.append)
    for text in ("one", "two", "three"):
        found.add(text)
    assert found.items[-3:] == ["one", "two", "three"]
    assert len(notices) == 1 and "not kept" in notices[0]


def _read_only(*arguments: Any) -> int:
    raise OSError(30, os.strerror(30))


@pytest.mark.parametrize(
    ("platform", "environment", "expected"),
    [
        ("linux", {"BESTIARY_STATE": "/s"}, "/s"),
        ("linux", {"XDG_STATE_HOME": "/x"}, "/x/bestiary"),
        ("linux", {"HOME": "/h"}, "/h/.local/state/bestiary"),
        ("darwin", {"HOME": "/h"}, "/h/Library/Application Support/bestiary"),
        ("linux", {"HOME": "here"}, None),
    ],
)
def test_where_state_is_kept(
    platform: str, environment: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("BESTIARY_STATE", "XDG_STATE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, text in environment.items():
        monkeypatch.setenv(name, text)
    monkeypatch.setattr(sys, "platform", platform)
    assert state_directory() == (None if expected is None else Path(expected))
