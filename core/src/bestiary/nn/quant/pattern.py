"""Regular expressions from a checkpoint's configuration, matched in time linear in the name: `Pattern`.

They come with a model, so they must not be able to hang a process, as a backtracking engine can. The expression becomes
a non-deterministic automaton whose states are followed all at once, and remembered by set (Thompson, CACM 11(6), 1968).
Known are literals, ``.``, escapes, classes, groups, ``|``, ``* + ? {m,n}``, ``^`` and ``$``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from bestiary.api.errors import ConfigError

MAX_LENGTH = 512
_MAX_REPEAT = 64
_MAX_DEPTH = 32
_MAX_STATES = 4096
_MAX_REMEMBERED = 20_000

Accepts = Callable[[str], bool]
Fragment = Callable[[int], int]
"""Builds states that go on to a given one; returns the first of them."""


class _State(NamedTuple):
    """accepts: of a state that takes a character. anchor: "^" or "$", of one that takes none but asks where it is."""

    accepts: Accepts | None
    anchor: str
    following: tuple[int, ...]


class Pattern:
    """`text` as `re.match` would have it: from the start of a name, not necessarily to its end.

    Raises:
        ConfigError: the expression is too long or large, or not of the known kind.
    """

    def __init__(self, text: str, field: str) -> None:
        self.text, self._field, self._at, self._depth = text, field, 0, 0
        self._states: list[_State] = [_State(None, "", ())]  # state 0: matched
        if len(text) > MAX_LENGTH:
            raise self._refused(f"at most {MAX_LENGTH} characters")
        fragment = self._alternatives()
        if self._at < len(text):
            raise self._refused("balanced parentheses")
        self._start = fragment(0)
        self._moves: dict[tuple[frozenset[int], str], frozenset[int]] = {}

    def matches(self, name: str) -> bool:
        current = self._reached({self._start}, at_start=True, at_end=not name)
        for index, character in enumerate(name):
            if 0 in current:
                return True
            current = self._moved(current, character)
            if index == len(name) - 1:
                current = self._reached(current, at_start=False, at_end=True)
        return 0 in current

    def _moved(self, current: frozenset[int], character: str) -> frozenset[int]:
        key = (current, character)
        if key not in self._moves:
            if len(self._moves) >= _MAX_REMEMBERED:
                self._moves.clear()
            states = (self._states[each] for each in current)
            after = {state.following[0] for state in states if state.accepts is not None and state.accepts(character)}
            self._moves[key] = self._reached(after, at_start=False, at_end=False)
        return self._moves[key]

    def _reached(self, states: set[int] | frozenset[int], *, at_start: bool, at_end: bool) -> frozenset[int]:
        """The states and all that follow from them without a character. Anchors that do not hold yet are kept."""
        found, waiting = set(states), list(states)
        while waiting:
            state = self._states[waiting.pop()]
            holds = {"": True, "^": at_start, "$": at_end}[state.anchor]
            if state.accepts is None and holds:
                waiting += [each for each in state.following if each not in found]
                found.update(state.following)
        return frozenset(found)

    def _refused(self, rule: str) -> ConfigError:
        return ConfigError(
            "a regular expression is refused", code="BAD_QUANTIZATION", field=self._field, limit=rule, value=self.text
        )

    def _state(self, following: tuple[int, ...], accepts: Accepts | None = None, anchor: str = "") -> int:
        if len(self._states) >= _MAX_STATES:
            raise self._refused("not so many repetitions inside one another")
        self._states.append(_State(accepts, anchor, following))
        return len(self._states) - 1

    # The parser: one method for each level of the grammar, from the loosest to the tightest.

    def _peek(self) -> str:
        return self.text[self._at : self._at + 1]

    def _take(self, wanted: str = "") -> bool:
        """Go past `wanted`, or past any one character."""
        if wanted and not self.text.startswith(wanted, self._at):
            return False
        self._at += len(wanted) or 1
        return True

    def _alternatives(self) -> Fragment:
        branches = [self._sequence()]
        while self._take("|"):
            branches.append(self._sequence())
        if len(branches) == 1:
            return branches[0]
        return lambda out: self._state(tuple(branch(out) for branch in branches))

    def _sequence(self) -> Fragment:
        items: list[Fragment] = []
        while self._peek() not in ("", "|", ")"):
            items.append(self._repeated(self._atom()))

        def build(out: int) -> int:
            for item in reversed(items):
                out = item(out)
            return out

        return build

    def _repeated(self, item: Fragment) -> Fragment:
        low, high = self._bounds()
        if (low, high) == (1, 1):
            return item
        if self._peek() in ("*", "+", "{") and self._peek():
            raise self._refused("no repetition of a repetition")
        self._take("?")  # lazy or not, what matches is the same

        def build(out: int) -> int:
            if high is None:
                loop = self._state(())
                self._states[loop] = _State(None, "", (item(loop), out))
                out = loop
            else:
                end = out
                for _ in range(high - low):
                    out = self._state((item(out), end))
            for _ in range(low):
                out = self._state((item(out),))  # a state each, even of nothing: they are what is counted
            return out

        return build

    def _bounds(self) -> tuple[int, int | None]:
        for mark, bounds in {"*": (0, None), "+": (1, None), "?": (0, 1)}.items():
            if self._take(mark):
                return bounds
        if not self._take("{"):
            return 1, 1
        inside, closed, _ = self.text[self._at :].partition("}")
        low, comma, high = inside.partition(",")
        if not closed or not low.isdecimal() or not (high.isdecimal() or not high):
            raise self._refused("repetitions as {m}, {m,} or {m,n}")
        self._at += len(inside) + 1
        most = (int(high) if high else None) if comma else int(low)
        if int(low) > _MAX_REPEAT or (most is not None and not int(low) <= most <= _MAX_REPEAT):
            raise self._refused(f"at most {_MAX_REPEAT} repetitions, the smaller number first")
        return int(low), most

    def _atom(self) -> Fragment:
        character = self._peek()
        self._take()
        if character == "(":
            return self._group()
        if character in ("^", "$"):
            return lambda out: self._state((out,), anchor=character)
        if character in ("*", "+", "?", "{"):
            raise self._refused("something to repeat before * + ? {")
        accepts = self._accepts(character)
        return lambda out: self._state((out,), accepts)

    def _group(self) -> Fragment:
        if not self._take("?:") and self._peek() == "?":
            raise self._refused("groups as ( ) or (?: )")
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise self._refused(f"at most {_MAX_DEPTH} groups inside one another")
        inside = self._alternatives()
        if not self._take(")"):
            raise self._refused("balanced parentheses")
        self._depth -= 1
        return inside

    def _accepts(self, character: str) -> Accepts:
        if character == ".":
            return lambda each: each != "\n"
        if character == "[":
            return self._class()
        if character == "\\":
            return self._escaped()
        return lambda each: each == character

    def _escaped(self) -> Accepts:
        letter = self._peek()
        self._take()
        if letter in _KINDS:
            return _KINDS[letter]
        if not letter or letter.isalnum():
            raise self._refused(r"escapes of punctuation, or \d \w \s")
        return lambda each: each == letter

    def _class(self) -> Accepts:
        negated = self._take("^")
        kinds: list[Accepts] = []
        while not kinds or self._peek() != "]":
            if not self._peek():
                raise self._refused("classes as [ ]")
            kinds.append(self._class_member())
        self._take("]")
        return lambda each: any(kind(each) for kind in kinds) != negated

    def _class_member(self) -> Accepts:
        first = self._peek()
        self._take()
        if first == "\\":
            return self._escaped()
        if self._peek() == "-" and self.text[self._at + 1 : self._at + 2] not in ("]", ""):
            self._take("-")
            last = self._peek()
            self._take()
            return lambda each: first <= each <= last
        return lambda each: each == first


_KINDS: dict[str, Accepts] = {
    "d": str.isdecimal,
    "w": lambda each: each.isalnum() or each == "_",
    "s": str.isspace,
}
