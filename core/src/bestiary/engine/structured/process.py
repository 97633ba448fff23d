"""`GrammarProcess`: whether a form of answer can be had, found out in a process of its own, before it is asked for.

Well-formed grammars exist that take minutes to compile, and others whose nesting overflows a compiler's stack. The
engine must not meet them first.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

from bestiary.api.errors import RequestError
from bestiary.api.structured import FIELD, StructuredOutputsParams, Vocabulary
from bestiary.engine.confined import ChildFailed, ConfinedProcess

DEADLINE_S = 2.0
START_S = 120.0
"""For the child to read the largest vocabularies on a busy machine."""
CACHE_BYTES = 2**20
_ENTRY_BYTES = 400
"""What one answer takes beside its text: two objects, and a place in a mapping that keeps their order."""


class GrammarProcess:
    """Owns the child, which is started at the first question, and remembers its answers. Several threads may call.

    Args:
        vocabulary: made when the child is started. backend: the name of one. plugin: choices among packages.
        deadline_s: for one question. cache_bytes: for answers.
    """

    def __init__(
        self,
        vocabulary: Callable[[], Vocabulary],
        backend: str = "llguidance",
        plugin: Mapping[str, str] = MappingProxyType({}),
        *,
        deadline_s: float = DEADLINE_S,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self._vocabulary, self._deadline_s = vocabulary, deadline_s
        self._told = {"backend": backend, "plugin": dict(plugin)}
        self._process = ConfinedProcess(
            "bestiary.engine.structured.child", deadline_s=deadline_s, start_s=START_S, first=self._first
        )
        self._verdicts = Verdicts(cache_bytes)

    def check(self, params: StructuredOutputsParams) -> None:
        """Raises `RequestError`: an answer in this form cannot be had (BAD_SCHEMA, BAD_REGEX, BAD_GRAMMAR), or not at
        a bearable cost (GRAMMAR_LIMIT)."""
        if self.knows(params):
            return
        request = json.dumps(asdict(params)).encode() + b"\n"
        try:
            answer = self._process.ask(request)
        except ChildFailed as failed:
            raise RequestError(
                f"compiling it {failed}, and was stopped", code="GRAMMAR_LIMIT", field=f"{FIELD}.{params.form}",
                fix="ask for a simpler form",
            ) from None  # fmt: skip
        self._verdicts.keep(_digest(params), answer)
        self.knows(params)

    def knows(self, params: StructuredOutputsParams) -> bool:
        """Whether this form is known to be well. Raises `RequestError` where it is known not to be."""
        verdict = self._verdicts.get(_digest(params))
        if verdict:
            raise RequestError(**verdict)
        return verdict is not None

    def close(self) -> None:
        """End the child; the next question starts another."""
        self._process.close()

    @property
    def longest_s(self) -> float:
        """How long one question takes at most: the child may have to be started first."""
        return self._deadline_s + self._process.start_s

    @property
    def pid(self) -> int | None:
        """The child's, while there is one."""
        return self._process.pid

    def _first(self) -> bytes:
        return json.dumps({**asdict(self._vocabulary()), **self._told}).encode() + b"\n"


class Verdicts:
    """Digest → the arguments of an error, or nothing; the oldest go where they take more than `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self._limit, self._lock = limit, threading.Lock()
        self._kept: OrderedDict[bytes, bytes] = OrderedDict()
        self.size = 0

    def keep(self, digest: bytes, verdict: dict[str, Any]) -> None:
        with self._lock:
            self._drop(digest)
            self._kept[digest] = json.dumps(verdict).encode()
            self.size += _size(self._kept[digest])
            while self.size > self._limit:
                self._drop(next(iter(self._kept)))

    def get(self, digest: bytes) -> dict[str, Any] | None:
        with self._lock:
            found = self._kept.get(digest)
            if found is None:
                return None
            self._kept.move_to_end(digest)
        verdict: dict[str, Any] = json.loads(found)
        return verdict

    def _drop(self, digest: bytes) -> None:
        if digest in self._kept:
            self.size -= _size(self._kept.pop(digest))


def _size(verdict: bytes) -> int:
    return _ENTRY_BYTES + len(verdict)


def _digest(params: StructuredOutputsParams) -> bytes:
    return hashlib.blake2b(json.dumps(asdict(params)).encode(), digest_size=32).digest()
