"""Answers in a form that is asked for: `StructuredOutputsParams`, and what a backend that sees to it must be."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, Protocol, runtime_checkable

from .errors import RequestError

MAX_TEXT_BYTES = 64 * 2**10
MAX_CHOICES = 1000
FIELD = "structured_outputs"
Form = Literal["json", "json_object", "regex", "grammar", "choice"]
FORMS: tuple[Form, ...] = ("json", "json_object", "regex", "grammar", "choice")


@dataclass(frozen=True, kw_only=True)
class StructuredOutputsParams:
    """The form of an answer: exactly one of the first five. Checked for its size when made, never changed after;
    whether it means anything is a backend's word (`StructuredOutputBackend.validate_grammar`).

    Attributes:
        json: a JSON Schema, which the answer satisfies; as text, or as an object, of which the text is kept.
        json_object: True: the answer is a JSON object, whatever is in it.
        regex: a regular expression that the whole answer matches.
        grammar: a Lark grammar of the answer, in the backend's dialect.
        choice: the answer is one of these texts.
        disable_any_whitespace: JSON without whitespace between its parts.
    """

    json: str | dict[str, Any] | None = None
    json_object: bool = False
    regex: str | None = None
    grammar: str | None = None
    choice: Sequence[str] | None = None
    disable_any_whitespace: bool = False

    def __post_init__(self) -> None:
        given = [name for name in FORMS if getattr(self, name) not in (None, False)]
        if len(given) != 1:
            found = " and ".join(given) or "none of them"
            raise RequestError("an answer has one form", field=FIELD, limit=f"one of {', '.join(FORMS)}", value=found)
        for name in ("json_object", "disable_any_whitespace"):
            if not isinstance(getattr(self, name), bool):
                raise _refuse(name, getattr(self, name), "true or false")
        if self.json is not None and not isinstance(self.json, str):
            object.__setattr__(self, "json", _as_text(self.json))
        if self.choice is not None:
            object.__setattr__(self, "choice", _as_choices(self.choice))
        for name in ("json", "regex", "grammar"):
            if getattr(self, name) is not None:
                _check_text(name, getattr(self, name))

    @classmethod
    def of(cls, given: StructuredOutputsParams | Mapping[str, Any]) -> StructuredOutputsParams:
        """`given`, or what its names and values say. Raises `RequestError` for an unknown name."""
        if isinstance(given, cls):
            return given
        known = [each.name for each in fields(cls)]
        if not isinstance(given, Mapping) or not set(given) <= set(known):
            unknown = sorted(set(map(str, given)) - set(known))[0] if isinstance(given, Mapping) else given
            raise RequestError("no form of an answer", field=FIELD, limit=f"among {', '.join(known)}", value=unknown)
        return cls(**given)

    @property
    def form(self) -> Form:
        """Which of the five it is."""
        return next(name for name in FORMS if getattr(self, name) not in (None, False))


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What a backend knows of a model: plain values, which can be sent to another process.

    Attributes:
        tokenizer_json: the tokenizer, as the `tokenizers` library writes it.
        vocab_size: width of the logits; the tokenizer may have fewer tokens.
        eos_token_ids: what ends an answer.
    """

    tokenizer_json: str
    vocab_size: int
    eos_token_ids: tuple[int, ...]


@runtime_checkable
class StructuredOutputGrammar(Protocol):
    """One answer's grammar, at some place in the answer. It shares no state with those of other answers."""

    def allowed_tokens(self) -> bytes:
        """Which tokens may come next: a bit for each id, the lowest in the lowest bit of the first byte, and at least
        `vocab_size` of them. The bits of `eos_token_ids` say whether the answer may end here.

        Raises:
            RequestError: it takes more than its limits allow (code GRAMMAR_LIMIT), or nothing can ever match.
        """
        ...

    def accept_token(self, token_id: int) -> None:
        """`token_id`, one of the allowed ones and none that ends the answer, comes next. Raises like the other."""
        ...


@runtime_checkable
class StructuredOutputBackend(Protocol):
    """Makes grammars for one `Vocabulary`, with which it is constructed. Several threads may call."""

    def validate_grammar(self, params: StructuredOutputsParams) -> StructuredOutputGrammar:
        """Compile it, and refuse what is wrong and what cannot be enforced as it is meant.

        Raises:
            RequestError: code BAD_SCHEMA, BAD_REGEX, BAD_GRAMMAR or GRAMMAR_LIMIT. One about a schema says where, as a
                JSON pointer.
        """
        ...

    def compile_grammar(self, params: StructuredOutputsParams) -> StructuredOutputGrammar:
        """The grammar of one that was validated, at its beginning. Raises `RequestError` with the same codes."""
        ...


def _as_text(schema: object) -> str:
    try:
        text = json.dumps(schema, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as cause:
        raise RequestError(f"the schema is not plain data: {cause}", code="BAD_SCHEMA", field=f"{FIELD}.json") from None
    if not isinstance(schema, Mapping):
        raise RequestError("a JSON Schema is an object", code="BAD_SCHEMA", field=f"{FIELD}.json", value=text)
    return text


def _as_choices(given: object) -> tuple[str, ...]:
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise _refuse("choice", given, "a list of texts")
    for each in given:
        _check_text("choice", each)
    size = sum(len(each.encode()) for each in given)
    if not 1 <= len(given) <= MAX_CHOICES or size > MAX_TEXT_BYTES:
        shown = f"{len(given)} of {size} bytes together"
        raise _refuse("choice", shown, f"from 1 to {MAX_CHOICES} texts of at most {MAX_TEXT_BYTES} bytes together")
    return tuple(given)


def _check_text(name: str, text: object) -> None:
    if not isinstance(text, str) or not text:
        raise _refuse(name, text, "text that is not empty")
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise _refuse(name, text[error.start], "Unicode text, without half of a surrogate pair") from error
    if size > MAX_TEXT_BYTES:
        raise RequestError(
            f"{name} is too long", code="GRAMMAR_LIMIT", field=f"{FIELD}.{name}", value=size,
            limit=f"at most {MAX_TEXT_BYTES} bytes",
        )  # fmt: skip


def _refuse(name: str, value: object, rule: str) -> RequestError:
    return RequestError(f"{name} must be {rule}", field=f"{FIELD}.{name}", limit=rule, value=value)
