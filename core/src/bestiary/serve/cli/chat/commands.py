"""What a line that begins with / does. A table: name → words for /help, and the function that does it."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import click

from bestiary.api.errors import BestiaryError, UsageError
from bestiary.serve.cli.output import clean, pairs, plain_lines, say

from .conversation import Conversation
from .faces import Face
from .transcript import load, save


class Chat(NamedTuple):
    """What commands act on."""

    conversation: Conversation
    face: Face


class Command(NamedTuple):
    usage: str
    help: str
    run: Callable[[Chat, str], None]


def run(chat: Chat, name: str, argument: str) -> None:
    """Do what `name` says. What goes wrong is told, and the conversation goes on."""
    try:
        COMMANDS[name].run(chat, argument)
    except BestiaryError as error:
        chat.face.refused(error)
    except click.BadParameter as error:
        chat.face.refused(UsageError(error.message, field=argument.partition(" ")[0]))


def complete(before: str, word: str) -> Sequence[str]:
    """What a word may become: a command, a parameter's name, a file."""
    if not before.strip():
        return [f"{name} " for name in COMMANDS if name.startswith(word)] if word.startswith("/") else []
    if before.split()[0] in ("/save", "/save!", "/load"):
        found = sorted(glob.glob(f"{glob.escape(os.path.expanduser(word))}*"))
        return [f"{path}/" if os.path.isdir(path) else path for path in found]
    return []


def too_long_fix() -> str:
    return "/undo takes back the last message, /reset forgets all (nothing is ever left out silently); or say less"


def help_text() -> str:
    width = max(len(each.usage) for each in COMMANDS.values())
    lines = [f"{each.usage.ljust(width)}  {each.help}" for each in COMMANDS.values()]
    return "\n".join([*lines, *(f"{usage.ljust(width)}  {words}" for usage, words in _KEYS)])


_KEYS = (
    ("Ctrl-C", "stop the answer"),
    ("Ctrl-D", "leave"),
    ("line \\", "a line that ends in a backslash goes on in the next"),
    ('""" … """', "several lines as one message"),
)


def _help(chat: Chat, argument: str) -> None:
    say(help_text())


def _reset(chat: Chat, argument: str) -> None:
    chat.conversation.reset()
    say("the conversation is forgotten")


def _system(chat: Chat, argument: str) -> None:
    if argument:
        chat.conversation.system = None if argument == "-" else argument
    system = chat.conversation.system
    say("there is no system message" if system is None else f"system message: {clean(system)}")


def _regenerate(chat: Chat, argument: str) -> None:
    conversation = chat.conversation
    params = conversation.choice.params
    if params.temperature == 0 or params.seed is not None:
        why = "temperature 0" if params.temperature == 0 else f"seed {params.seed}"
        say(f"the answer will be the same: /set changes {why}")
    answer = conversation.regenerate(chat.face.writer())
    chat.face.answered(conversation.messages[-2]["content"], answer)


def _undo(chat: Chat, argument: str) -> None:
    say(f"taken back: {clean(chat.conversation.undo())}")


def _save(chat: Chat, argument: str, *, overwrite: bool = False) -> None:
    path = _path(argument, "/save")
    save(chat.conversation, path, overwrite=overwrite)
    say(f"saved to {clean(str(path))}")


def _save_over(chat: Chat, argument: str) -> None:
    _save(chat, argument, overwrite=True)


def _load(chat: Chat, argument: str) -> None:
    messages = load(_path(argument, "/load"))
    chat.conversation.replace(messages)
    unanswered = messages[-1]["role"] == "user"
    say(f"{len(messages)} messages" + ("; the last has no answer yet: /regenerate makes one" if unanswered else ""))


def _set(chat: Chat, argument: str) -> None:
    choice = chat.conversation.choice
    name, _, text = argument.partition(" ")
    if text.strip():
        say(f"{name} = {choice.set(name, text.strip())}")
        return
    rows = [(each, value) for each, value in choice.rows() if name in ("", each)]
    if not rows:
        choice.set(name, "none")  # raises, with the nearest name
    for line in list(plain_lines(pairs("", [(each, "none" if value is None else value) for each, value in rows])))[1:]:
        say(line)


def _stats(chat: Chat, argument: str) -> None:
    conversation = chat.conversation
    answers = conversation.answers
    if not answers:
        say("no answer yet")
        return
    generated = sum(each.stats["generated_tokens"] or 0 for each in answers)
    seconds = sum(each.stats["total_s"] or 0.0 for each in answers)
    last = answers[-1].stats
    used = None if last["prompt_tokens"] is None else last["prompt_tokens"] + last["generated_tokens"]
    context = "" if conversation.responder.context is None else f" of {conversation.responder.context}"
    say(f"{len(answers)} answers, {generated} tokens in {seconds:.1f} s")
    if used is not None:
        cached = last["cached_tokens"] or 0
        say(f"the last used {used}{context} tokens of context, {cached} of them from the prefix cache")


def _exit(chat: Chat, argument: str) -> None:
    raise Leave


class Leave(Exception):
    """The person wants to go."""


def _path(argument: str, command: str) -> Path:
    if not argument:
        raise UsageError("a file must be named", field=command, limit=COMMANDS[command].usage)
    return Path(argument).expanduser()


COMMANDS = {
    "/system": Command("/system TEXT", "change the system message; - removes it", _system),
    "/regenerate": Command("/regenerate", "answer the last message anew", _regenerate),
    "/undo": Command("/undo", "take back the last message and its answer", _undo),
    "/set": Command("/set NAME VALUE", "change a sampling parameter; without VALUE: show", _set),
    "/save": Command("/save FILE", "write the conversation: JSON, or Markdown to FILE.md", _save),
    "/save!": Command("/save! FILE", "the same, over a file that is there", _save_over),
    "/load": Command("/load FILE", "go on with a conversation from a JSON file", _load),
    "/stats": Command("/stats", "tokens, time and context so far", _stats),
    "/reset": Command("/reset", "forget the conversation", _reset),
    "/help": Command("/help", "these lines", _help),
    "/exit": Command("/exit", "leave", _exit),
}
"""In the order of /help."""
