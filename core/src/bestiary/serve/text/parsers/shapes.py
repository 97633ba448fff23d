"""One call, in each of the shapes that families write. A script reads up to the call's last character.

A call is *told* once its name is known and its arguments have begun; from then on it is one, come what may. Whatever is
wrong raises `Malformed`. The reader's record holds what was read and has not gone out.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from bestiary.api.text_formats import CallShape, JsonCall, NamedCall, PythonCall, TaggedCall

from .literals import JSON, PYTHON, escaped, literal, text_literal
from .reader import Malformed, Marks, Reader, Steps
from .schemas import Schemas, argument_types, typed_text

_NAME = re.compile(r"[\w.-]*")
_IDENTIFIER = re.compile(r"\w*")
_CHARS = 256
"""Of a name, of a key, and between a name and its arguments."""
_KEYS_BEFORE_A_NAME = frozenset({"id", "type", "tool_call_id"})


class Call:
    """One call being read.

    Args:
        tell: takes more text of the arguments, with the name the first time.
        known: the only names that count; None: any.
    """

    def __init__(self, reader: Reader, tell: Callable[[str | None, str], None], known: Schemas | None) -> None:
        self._reader = reader
        self._tell = tell
        self._known = known
        self._name: str | None = None
        self._early: list[str] = []
        self._complete = False
        self.told = False

    @property
    def begun(self) -> bool:
        """Some of the arguments have come."""
        return self.told or bool(self._early)

    @property
    def whole(self) -> bool:
        """Told, with all its arguments: what follows cannot harm it."""
        return self.told and self._complete

    def named(self, name: str) -> None:
        """Raises Malformed where this is no name that counts, or the second."""
        if self._name is not None or not name.strip() or len(name) > _CHARS:
            raise Malformed
        if self._known is not None and name not in self._known:
            raise Malformed
        self._name = name
        if self._early:
            self._first()

    def write(self, text: str) -> None:
        """More of the arguments, kept until the name is known."""
        if self.told:
            self._reader.forget()
            self._tell(None, text)
            return
        self._early.append(text)
        if self._name is not None:
            self._first()

    def complete(self) -> None:
        """That were all its arguments."""
        self._complete = True
        if self.told:
            self._reader.record()

    def _first(self) -> None:
        self.told = True
        self._reader.forget()
        self._tell(self._name, "".join(self._early))
        if self._complete:
            self._reader.record()


def read_call(shape: CallShape, reader: Reader, call: Call, schemas: Schemas, closing: str, bare: bool) -> Steps[None]:
    """One call of any shape. `closing` ends the section it stands in; `bare`: nothing has announced it."""
    match shape:
        case JsonCall():
            return _json_call(shape, reader, call, bare)
        case NamedCall():
            return _named_call(shape, reader, call)
        case TaggedCall():
            return _tagged_call(shape, reader, call, schemas, closing)
        case PythonCall():
            return _python_call(reader, call)


def may_begin(shape: CallShape, reader: Reader) -> Steps[bool]:
    """Whether what comes next, behind white space, begins a call."""
    yield from reader.spaces()
    match shape:
        case JsonCall():
            return (yield from reader.peek()) == "{"
        case PythonCall():
            return (yield from reader.peek()).isidentifier()
        case _:
            return bool(shape.opening) and (yield from reader.sees(shape.opening))


def _json_call(shape: JsonCall, reader: Reader, call: Call, bare: bool) -> Steps[None]:
    yield from reader.need("{")
    while True:
        yield from reader.spaces()
        key = yield from text_literal(reader)
        yield from reader.need(":")
        yield from reader.spaces()
        if key == shape.name:
            call.named((yield from text_literal(reader)))
        elif key in shape.arguments:
            yield from _object(reader, call)
        elif bare and not call.begun and key not in _KEYS_BEFORE_A_NAME:
            raise Malformed
        else:
            yield from _aside(reader)
        if not (yield from reader.take(",")):
            break
    yield from reader.need("}")
    if not call.begun:
        call.write("{}")
        call.complete()
    if not call.told:
        raise Malformed


def _object(reader: Reader, call: Call) -> Steps[None]:
    """The arguments as a JSON object, for the first time."""
    yield from reader.spaces()
    if call.begun or (yield from reader.peek()) != "{":
        raise Malformed
    yield from literal(reader, call.write, JSON)
    call.complete()


def _aside(reader: Reader) -> Steps[None]:
    """What a call holds beside name and arguments: a word or a number (an id), which says nothing to the caller. An
    object or a list could be misnamed arguments."""
    if (yield from reader.peek()) in ("{", "["):
        raise Malformed
    yield from literal(reader, lambda _: None)


def _named_call(shape: NamedCall, reader: Reader, call: Call) -> Steps[None]:
    yield from reader.need(shape.opening)
    call.named((yield from reader.run(_NAME, _CHARS)))
    if shape.header is None:
        yield from reader.need(shape.between)
    else:
        yield from reader.before(shape.between.strip(), _CHARS)
    yield from _object(reader, call)
    yield from reader.need(shape.closing)


def _tagged_call(shape: TaggedCall, reader: Reader, call: Call, schemas: Schemas, closing: str) -> Steps[None]:
    yield from reader.need(shape.opening)
    name = yield from reader.run(_NAME, _CHARS)
    call.named(name)
    yield from reader.need(shape.name_closing)
    lead, (key_end, *value_begin) = "{", shape.key_closing.split()
    while (yield from reader.take(shape.key_opening)):
        key = yield from reader.before(key_end, _CHARS)
        yield from reader.need(" ".join(value_begin))
        call.write(f'{lead}"{escaped(key)}": ')
        yield from _tagged_value(shape, reader, call, argument_types(schemas.get(name), key))
        reader.record()
        lead = ", "
    closed = bool(shape.closing) and (yield from reader.take(shape.closing))
    if not closed and not (closing and (yield from reader.sees(closing))):
        raise Malformed
    call.write("{}" if lead == "{" else "}")
    call.complete()


def _tagged_value(shape: TaggedCall, reader: Reader, call: Call, types: frozenset[str]) -> Steps[None]:
    if shape.padding and (yield from reader.sees(shape.padding)):
        reader.skip(len(shape.padding))
    ends = Marks([shape.padding + shape.value_closing.strip(), shape.value_closing.strip()])
    if types == {"string"}:
        call.write('"')
        if not (yield from reader.until(ends, lambda piece: call.write(escaped(piece)))):
            raise Malformed
        call.write('"')
        return
    pieces: list[str] = []
    ended = yield from reader.until(ends, pieces.append)
    text = "".join(pieces)
    call.write(typed_text(text, types) if ended else text)
    if not ended:
        raise Malformed


def _python_call(reader: Reader, call: Call) -> Steps[None]:
    call.named((yield from reader.run(_NAME, _CHARS)))
    yield from reader.need("(")
    call.write("{")
    reader.record()
    lead = ""
    while not (yield from reader.take(")")):
        key = yield from reader.run(_IDENTIFIER, _CHARS)
        if not key:
            raise Malformed
        yield from reader.need("=")
        call.write(f'{lead}"{key}": ')
        yield from reader.spaces()
        yield from literal(reader, call.write, PYTHON)
        reader.record()
        if not (yield from reader.take(",")) and not (yield from reader.sees(")")):
            raise Malformed
        lead = ", "
    call.write("}")
    call.complete()
