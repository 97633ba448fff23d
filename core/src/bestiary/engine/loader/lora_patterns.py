"""`rank_pattern` and `alpha_pattern` of an adapter: regular expressions from a file, so only harmless ones are run.

A pattern is matched against the names of a model's modules, which are short. Without look-around, back references and
repeated groups, and with at most two repetitions, that takes polynomial time of low degree, whatever the pattern; few
of them may repeat anything at all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from bestiary.api.errors import shorten

MAX_PATTERNS = 4096
MAX_REPEATING = 64
MAX_CHARS = 256
MAX_REPEATS = 2
Values = tuple[tuple[re.Pattern[str], float], ...]
_TOKEN = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\(\?|\{[0-9,]*\}|.", re.DOTALL)


def problems(patterns: Mapping[str, object]) -> list[str]:
    """Every pattern that may not be run, with the rule it breaks."""
    if len(patterns) > MAX_PATTERNS:
        return [f"{len(patterns)} patterns: at most {MAX_PATTERNS}"]
    found = [f"the pattern {shorten(each)}: {reason}" for each in patterns if (reason := why_not(each)) is not None]
    repeating = sum(any(mark in each for mark in "*+{") for each in patterns)
    return found if repeating <= MAX_REPEATING else [*found, f"{repeating} repeat something: at most {MAX_REPEATING}"]


def why_not(pattern: str) -> str | None:
    """None where `pattern` may be run, otherwise the rule it breaks."""
    if len(pattern) > MAX_CHARS:
        return f"at most {MAX_CHARS} characters"
    repeats, before = 0, ""
    for token in _TOKEN.findall(pattern):
        if token == "(?" or re.fullmatch(r"\\[1-9]", token):
            return "no look-around, flags or back references"
        if token in ("*", "+") or (token.startswith("{") and len(token) > 1):
            if before == ")":
                return "no repeated groups"
            if before in ("*", "+", "?") or before.startswith("{"):
                return "no repetition of a repetition"
            repeats += 1
            if repeats > MAX_REPEATS:
                return f"at most {MAX_REPEATS} repetitions"
        before = token
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        return f"a regular expression ({error})"
    return None


def compiled(patterns: Mapping[str, float]) -> Values:
    """Patterns without problems, as `value_of` takes them."""
    return tuple((re.compile(rf"(?:.*\.)?(?:{pattern})$"), value) for pattern, value in patterns.items())


def value_of(patterns: Values, names: tuple[str, ...], default: float) -> float:
    """The value of the first pattern that fits one of the names, or its last parts."""
    return next((value for pattern, value in patterns if any(map(pattern.match, names))), default)
