"""Everything Bestiary raises at its users, as one tree.

    BestiaryError
    ├── UsageError                    a wrong argument or option                       exit 1
    ├── BadTarget                     what `certify` was given is no plugin            exit 2
    ├── EngineError                   the runtime itself failed                        exit 1
    │   └── ModelFailed               the model raised in a step
    ├── RequestError                  one request is refused; others go on             exit 1
    │   └── BadAdapter                the adapter it wants is damaged, or does not fit  exit 2
    ├── ModelError                    the model (directory, file, hub id) is bad       exit 2
    │   ├── ConfigError               config.json, its fields and overrides
    │   │   └── UnknownArchitecture   nothing installed implements it
    │   └── LoadError                 the weights
    │       ├── CorruptWeights        a damaged or hostile safetensors file
    │       ├── CorruptGguf           a damaged or hostile GGUF file
    │       ├── PickleRefused         a format that could run code
    │       └── WeightsMismatch       names, shapes or completeness
    └── PluginError                   an installed package is bad                      exit 3
        ├── BrokenPlugin              raises, crashes or hangs when imported
        ├── DuplicateArchitecture     two packages claim one name
        ├── IncompatiblePlugin        written for another core API version
        └── InvalidModel              the class lacks members its protocols promise

An error says what happened, where (`field`), against which rule (`limit`) and with which `value`, and what to
do next (`fix`, a command where there is one). `code` is stable and meant for programs. All offenders of one kind are
reported by one error, in `details`, one line each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

_VALUE_CHARS = 64
_DETAIL_LINES = 20


def shorten(value: object) -> str:
    """`repr(value)` cut to 64 characters: an error never repeats a hostile input at length."""
    text = ""
    try:
        for piece in _pieces(value):
            text += piece
            if len(text) > _VALUE_CHARS:
                return text[: _VALUE_CHARS - 1] + "…"
    except Exception:  # an integer of thousands of digits, a repr that raises
        return f"({type(value).__name__} that cannot be shown)"
    return text


def _pieces(value: object) -> Iterator[str]:
    """`repr(value)` piece by piece, so that nobody need write the whole of a large list."""
    if isinstance(value, str | bytes):
        yield repr(value[: _VALUE_CHARS * 2])
    elif type(value) is list:
        yield "["
        for number, item in enumerate(value):
            yield ", " if number else ""
            yield from _pieces(item)
        yield "]"
    elif type(value) is dict:
        yield "{"
        for number, (name, item) in enumerate(value.items()):
            yield ", " if number else ""
            yield from _pieces(name)
            yield ": "
            yield from _pieces(item)
        yield "}"
    else:
        yield repr(value)


class BestiaryError(Exception):
    """The root of the tree; raise one of its leaves."""

    code: ClassVar[str] = "ERROR"
    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        field: str | None = None,
        limit: object = None,
        value: object = None,
        details: Sequence[str] = (),
        fix: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.error_code = code or type(self).code
        self.field = field
        self.limit = limit
        self.value = value
        self.details = tuple(details)
        self.fix = fix

    def __str__(self) -> str:
        lines = [f"{self.error_code}: {self.message}"]
        if self.field is not None:
            lines.append(f"  field: {self.field}")
        if self.value is not None:
            lines.append(f"  value: {shorten(self.value)}")
        if self.limit is not None:
            lines.append(f"  rule:  {self.limit}")
        lines += [f"  - {detail}" for detail in self.details[:_DETAIL_LINES]]
        if len(self.details) > _DETAIL_LINES:
            lines.append(f"  - … and {len(self.details) - _DETAIL_LINES} more")
        if self.fix is not None:
            lines.append(f"  fix:   {self.fix}")
        return "\n".join(lines)

    def _plain_value(self) -> object:
        """The value as JSON has it where it is short, otherwise as text."""
        value = self.value
        short = isinstance(value, int) and abs(value) < 2**63
        if value is None or short or (isinstance(value, str) and len(value) <= _VALUE_CHARS):
            return value
        return value if isinstance(value, float) and value - value == 0 else shorten(value)

    def as_dict(self) -> dict[str, object]:
        """The error as data, for `--json` and for HTTP bodies."""
        return {
            "code": self.error_code,
            "message": self.message,
            "field": self.field,
            "rule": None if self.limit is None else str(self.limit),
            "value": self._plain_value(),
            "details": list(self.details),
            "fix": self.fix,
        }


class UsageError(BestiaryError):
    code = "USAGE"


class BadTarget(BestiaryError):
    code = "BAD_TARGET"
    exit_code = 2


class EngineError(BestiaryError):
    code = "ENGINE"


class ModelFailed(EngineError):
    """The model raised in a step about the answers `request_ids`."""

    code = "MODEL_FAILED"
    request_ids: frozenset[str] = frozenset()


class RequestError(BestiaryError, ValueError):
    code = "BAD_REQUEST"


class BadAdapter(RequestError):
    code = "BAD_ADAPTER"
    exit_code = 2


class ModelError(BestiaryError):
    code = "BAD_MODEL"
    exit_code = 2


class ConfigError(ModelError):
    code = "BAD_CONFIG"


class UnknownArchitecture(ConfigError):
    code = "UNKNOWN_ARCHITECTURE"


class LoadError(ModelError):
    code = "LOAD_FAILED"


class CorruptWeights(LoadError):
    code = "CORRUPT_WEIGHTS"


class CorruptGguf(LoadError):
    code = "CORRUPT_GGUF"


class PickleRefused(LoadError):
    code = "PICKLE_REFUSED"


class WeightsMismatch(LoadError):
    code = "WEIGHTS_MISMATCH"


class PluginError(BestiaryError):
    code = "BAD_PLUGIN"
    exit_code = 3


class BrokenPlugin(PluginError):
    code = "BROKEN_PLUGIN"


class DuplicateArchitecture(PluginError):
    code = "DUPLICATE_ARCHITECTURE"


class IncompatiblePlugin(PluginError):
    code = "INCOMPATIBLE_PLUGIN"


class InvalidModel(PluginError):
    code = "INVALID_MODEL"
