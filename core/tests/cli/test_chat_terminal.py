"""`bestiary chat` as a person sees it: at a pseudo-terminal, against a server whose answers the test gives."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .openai_server import Script, serving

if sys.platform == "win32":
    pytest.skip("there are no pseudo-terminals", allow_module_level=True)

from .terminal import Terminal, terminal

CTRL_C, CTRL_D, UP = "\x03", "\x04", "\x1b[A"


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def chat(script: Script, tmp_path: Path) -> Iterator[Terminal]:
    with serving(script) as url, terminal("chat", "--url", url, environment={"BESTIARY_STATE": str(tmp_path)}) as made:
        made.wait_for("> ")
        yield made


def ask(chat: Terminal, keys: str) -> str:
    """What is shown from these keys to the next prompt."""
    chat.type(keys)
    chat.wait_for("ended by")
    return chat.wait_for("> ")


def test_markdown_is_drawn_and_plain_text_is_not(script: Script, tmp_path: Path) -> None:
    script.answers = [["Some **bold**", " text."]]
    state = {"BESTIARY_STATE": str(tmp_path)}
    with serving(script) as url:
        for options, environment, shown in (
            ([], state, "Some bold text."),
            (["--plain"], state, "Some **bold** text."),
            ([], state | {"TERM": "dumb"}, "Some **bold** text."),
        ):
            with terminal("chat", "--url", url, *options, environment=environment) as chat:
                chat.wait_for("> ")
                chat.type("hi\n")
                assert shown in chat.wait_for("ended by")
                chat.wait_for("> ")
                chat.type(CTRL_D)
                assert chat.end() == 0


def test_ctrl_c_stops_the_answer_and_not_the_program(chat: Terminal, script: Script) -> None:
    script.hold = 1
    chat.type("hi\n")
    assert script.held.wait(60)
    chat.wait_for("Hello")
    chat.type(CTRL_C)
    chat.wait_for("[stopped by Ctrl-C]")
    assert script.left.wait(60)
    chat.wait_for("> ")
    chat.type(CTRL_C)
    chat.wait_for("leaves")
    script.hold = None
    ask(chat, "and then\n")
    assert [each["content"] for each in script.bodies[1]["messages"]] == ["hi", "Hello", "and then"]
    chat.type("/exit\n")
    assert chat.end() == 0
    assert "Traceback" not in chat.shown


def test_several_lines_are_one_message(chat: Terminal, script: Script) -> None:
    chat.type("one \\\n")
    chat.wait_for("... ")
    ask(chat, "two\n")
    chat.type('"""first\n')
    chat.wait_for("... ")
    chat.type("/help\n")
    chat.wait_for("... ")
    ask(chat, 'last"""\n')
    said = [each["messages"][-1]["content"] for each in script.bodies]
    assert said == ["one\ntwo", "first\n/help\nlast"]


def test_commands_complete_and_what_was_typed_comes_back(script: Script, tmp_path: Path) -> None:
    pytest.importorskip("readline")
    environment = {"BESTIARY_STATE": str(tmp_path)}
    with serving(script) as url:
        with terminal("chat", "--url", url, environment=environment) as chat:
            chat.wait_for("> ")
            ask(chat, "a first message\n")
            chat.type("/regen\t\n")
            chat.wait_for("/regenerate")
            chat.wait_for("ended by")
            chat.wait_for("> ")
            chat.type("/exit\n")
            assert chat.end() == 0
        with terminal("chat", "--url", url, environment=environment) as chat:
            chat.wait_for("> ")
            ask(chat, UP * 3 + "\n")
        with terminal("chat", "--url", url, "--no-history", environment=environment) as chat:
            chat.wait_for("> ")
            ask(chat, UP + "not kept\n")
    said = [each["messages"][-1]["content"] for each in script.bodies]
    assert said == ["a first message", "a first message", "a first message", "not kept"]
    assert "not kept" not in (tmp_path / "chat_history").read_text()


def test_a_home_that_keeps_nothing_is_one_notice(script: Script, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        serving(script) as url,
        terminal("chat", "--url", url, environment={"BESTIARY_STATE": str(tmp_path / "file/state")}) as chat,
    ):
        chat.wait_for("> ")
        ask(chat, "one\n")
        ask(chat, "two\n")
        chat.type("/exit\n")
        assert chat.end() == 0
        assert chat.shown.count("not kept for another time") == 1


def test_a_refused_message_leaves_the_program_running(chat: Terminal, script: Script) -> None:
    script.status, script.error = 400, {"message": "not like this", "code": "BAD_REQUEST"}
    chat.type("hi\n")
    shown = chat.wait_for("> ")
    assert "the server says: not like this" in shown and "bestiary explain" not in shown
    script.status = 200
    ask(chat, "hi\n")
    assert len(script.bodies[-1]["messages"]) == 1
