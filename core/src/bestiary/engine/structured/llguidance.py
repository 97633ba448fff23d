"""The built-in backend: llguidance (package `llguidance`, extra `serve`), which works on the bytes of tokens.

Its limits are set here, low enough that no step of an answer takes much longer than the model does, and every answer
has a matcher of its own: copies of one share a lexer, and what exhausts that would end the others as well.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from bestiary.api.errors import RequestError
from bestiary.api.structured import FIELD, Form, StructuredOutputsParams, Vocabulary

from .json_schema import Schema, check_schema, wrong

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 300_000,
    "step_lexer_fuel": 30_000,
    "step_max_items": 10_000,
    "max_items_in_row": 1000,
    "max_lexer_states": 50_000,
    "max_grammar_size": 200_000,
    "precompute_large_lexemes": True,
    "verbose_errors": False,
}
"""`LLParserLimits`, lower than its defaults. Work at the start: a third (the first mask of the worst expression known
takes 0.3 s). Work for one token: a seventh for regular expressions (20 ms), a fifth for grammars. Items in a row: half,
which is 250 optional properties of one object. Memory of an answer: a fifth, about 30 MB."""
WHITESPACE = r"[\x20\x0A\x0D\x09]{1,64}"
"""Between the parts of JSON; bounded, or a model that has lost its way writes nothing else until it is cut off."""
_UNFORCED = '\n%llguidance {"no_forcing": true}'
"""Where a grammar leaves no choice, the library would allow one spelling in tokens alone, and take a special token's
text for that token."""
_NOUNS: dict[Form, str] = {
    "json": "the schema", "json_object": "the schema", "regex": "the regular expression", "grammar": "the grammar",
    "choice": "the list of choices",
}  # fmt: skip
_ECHO = re.compile(r"\s+in regex /.*| \(at \".*|; following special tokens.*|(?<=determine if regex is empty):.*")
_PLACE = re.compile(r"^at \d+\(\d+\): (failed to compile JSON schema: )?")
"""Of what we wrote ourselves."""
_LIMIT = re.compile(
    r"grammar\) too big|schema too large|too deeply nested|nested parentheses|fuel exhausted|too many|too complex"
    r"|max is|unable to determine if regex|failed to generate regex|lexer error",
    re.IGNORECASE,
)
"""In the library's words: it is not wrong, it is too much."""


class LLGuidanceBackend:
    """Raises `RequestError`: llguidance is missing, or cannot read the tokenizer, whose tokens stand for no bytes."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        try:
            import llguidance
        except ImportError as error:
            raise RequestError(
                "the form of an answer cannot be enforced without llguidance", code="STRUCTURED_OUTPUTS_UNAVAILABLE",
                field=FIELD, fix="pip install 'bestiary[serve]'",
            ) from error  # fmt: skip
        self._matcher: type[LLMatcher] = llguidance.LLMatcher
        self._limits = llguidance.LLParserLimits(**LIMITS)
        self._tokenizer = _tokenizer(llguidance.LLTokenizer, vocabulary)
        self._own_ends = tuple(self._tokenizer.eos_tokens if not vocabulary.eos_token_ids else ())

    def validate_grammar(self, params: StructuredOutputsParams) -> LLGuidanceGrammar:
        schema = check_schema(str(params.json)) if params.form == "json" else None
        try:
            return self.compile_grammar(params)
        except RequestError as error:
            pointer = None if schema is None else self._bad_pattern(schema)
            if pointer is None:
                raise
            raise wrong(pointer, error.message.removeprefix("the schema: ")) from None

    def compile_grammar(self, params: StructuredOutputsParams) -> LLGuidanceGrammar:
        grammar = self._matcher.grammar_from_lark(_lark(self._matcher, params) + _UNFORCED)
        matcher = self._matcher(self._tokenizer, grammar, log_level=0, limits=self._limits)
        if matcher.is_error():
            raise _refused(params, matcher.get_error())
        warnings = matcher.get_grammar_warnings()
        if warnings:  # of what the library would let pass
            raise _refused(params, warnings[0])
        return LLGuidanceGrammar(matcher, params, self._own_ends)

    def _bad_pattern(self, schema: Schema) -> str | None:
        """Where the first regular expression stands that the library refuses by itself."""
        for pointer, pattern in schema.patterns.items():
            given = json.dumps({"type": "string", "pattern": pattern})
            if self._matcher.validate_grammar(self._matcher.grammar_from_json_schema(given), limits=self._limits):
                return pointer
        return None


class LLGuidanceGrammar:
    """One answer's matcher; see `StructuredOutputGrammar`.

    Args:
        unmeant: ids that the library takes for an end of the answer though the model has none.
    """

    def __init__(self, matcher: LLMatcher, params: StructuredOutputsParams, unmeant: tuple[int, ...] = ()) -> None:
        self._matcher, self._params, self._unmeant = matcher, params, unmeant

    def allowed_tokens(self) -> bytes:
        allowed = self._matcher.compute_bitmask()
        self._check()
        return _without(allowed, self._unmeant) if self._unmeant else allowed

    def accept_token(self, token_id: int) -> None:
        if not self._matcher.consume_token(token_id):
            self._check()
            raise RequestError(f"token {token_id} was not allowed", code="GRAMMAR_LIMIT", field=FIELD)

    def _check(self) -> None:
        if self._matcher.is_error():
            raise _refused(self._params, self._matcher.get_error())


def _tokenizer(make: type[LLTokenizer], vocabulary: Vocabulary) -> LLTokenizer:
    """As wide as the logits, or as the vocabulary where that is larger.

    The library lets no other thread work meanwhile, so it is asked for less at a time: without merges, since it is
    never asked to split a text, and for what makes masks fast (slices) afterwards.
    """
    ends = list(vocabulary.eos_token_ids) or None
    try:
        described = _without_merges(vocabulary.tokenizer_json)
        try:
            made = make(described, n_vocab=vocabulary.vocab_size, eos_token=ends, slices=[])
        except ValueError as error:
            if "vocab size too small" not in str(error):
                raise
            made = make(described, eos_token=ends, slices=[])
        return made.with_slices(make.general_slices())
    except ValueError as error:
        raise RequestError(
            f"the form of an answer cannot be enforced with this tokenizer: {_reason(str(error))}",
            code="STRUCTURED_OUTPUTS_UNAVAILABLE", field=FIELD, limit="byte-level BPE, or BPE with byte fallback",
        ) from error  # fmt: skip


def _without_merges(tokenizer_json: str) -> str:
    described = json.loads(tokenizer_json)
    model = described.get("model", {})
    if "merges" in model:
        model["merges"] = []
    return json.dumps(described, ensure_ascii=False)


def _lark(matcher: type[LLMatcher], params: StructuredOutputsParams) -> str:
    """Every form in the library's dialect of Lark."""
    if params.grammar is not None:
        return params.grammar
    if params.regex is not None:
        if (len(params.regex) - len(params.regex.rstrip("\\"))) % 2:  # the library would drop it
            raise RequestError(
                "the regular expression: a backslash at its end", code="BAD_REGEX", field=f"{FIELD}.regex"
            )
        made: str = json.loads(matcher.grammar_from_regex(params.regex))["grammars"][0]["lark_grammar"]
        return made
    if params.choice is not None:
        return f"start: CHOICE\nCHOICE: {' | '.join(json.dumps(each) for each in params.choice)}"
    options: dict[str, Any] = {"lenient": False, "coerce_one_of": False}
    options |= {"whitespace_flexible": False} if params.disable_any_whitespace else {"whitespace_pattern": WHITESPACE}
    schema = {"type": "object"} if params.json is None else json.loads(str(params.json))
    return f"start: %json {json.dumps({**schema, 'x-guidance': options})}"


def _refused(params: StructuredOutputsParams, message: str) -> RequestError:
    """The library's complaint as ours."""
    form, reason = params.form, _reason(message)
    if form != "grammar":
        reason = _PLACE.sub("", reason)
    if "NoExtension" in message:
        reason = "there is no answer that it allows"
    bad = "BAD_REGEX" if form == "regex" else "BAD_GRAMMAR" if form in ("grammar", "choice") else "BAD_SCHEMA"
    code = "GRAMMAR_LIMIT" if _LIMIT.search(reason) else bad
    return RequestError(f"{_NOUNS[form]}: {reason}", code=code, field=f"{FIELD}.{form}")


def _reason(message: str) -> str:
    """One line of the library's message, without what was given to it."""
    _, found, after = message.rpartition("\nerror: ")
    line = (after if found else message).partition("\n")[0]
    return _ECHO.sub("", line).strip()[:160]


def _without(allowed: bytes, ids: tuple[int, ...]) -> bytes:
    bits = bytearray(allowed)
    for each in ids:
        bits[each // 8] &= ~(1 << each % 8)
    return bytes(bits)
