"""The process in which grammars are tried. It is told of a vocabulary, then asked about one form after another.

Grammar compilers recurse, and a stack that overflows ends a process. So grammars are compiled here with half the stack
that the engine gives them (`follower.py`), and their first tokens are tried: what is well here is well there.
"""

from __future__ import annotations

import json
import sys
import threading
from typing import Any

from bestiary.api.errors import BestiaryError, RequestError
from bestiary.api.hook_manager import HookManager
from bestiary.api.structured import (
    FIELD,
    StructuredOutputBackend,
    StructuredOutputGrammar,
    StructuredOutputsParams,
    Vocabulary,
)
from bestiary.engine.confined import STACK_BYTES, limit_memory, serve_lines, told

MEMORY_BYTES = 2 << 30
TRIED_TOKENS = 8


def main() -> None:
    limit_memory(MEMORY_BYTES)
    threading.stack_size(STACK_BYTES // 2)
    worker = threading.Thread(target=_serve)
    worker.start()
    worker.join()


def _serve() -> None:
    first = json.loads(sys.stdin.readline())
    ends = tuple(first["eos_token_ids"])
    vocabulary = Vocabulary(first["tokenizer_json"], first["vocab_size"], ends)
    try:
        hooks = HookManager(plugins=first["plugin"]).load()
        backend: StructuredOutputBackend = hooks.get("structured_output_backends", first["backend"])(vocabulary)
    except BestiaryError as error:
        refusal = told(error)
        serve_lines(lambda request: refusal)
        return
    serve_lines(lambda request: _answer(backend, vocabulary, request))


def _answer(backend: StructuredOutputBackend, vocabulary: Vocabulary, request: dict[str, Any]) -> dict[str, object]:
    try:
        try_out(backend.validate_grammar(StructuredOutputsParams(**request)), vocabulary)
    except RequestError as error:
        return told(error)
    except (MemoryError, RecursionError):
        return told(RequestError("it takes too much memory", code="GRAMMAR_LIMIT", field=FIELD))
    return {}


def try_out(grammar: StructuredOutputGrammar, vocabulary: Vocabulary) -> None:
    """Begin an answer: by turns with the highest id that is allowed, and the lowest. Raises what the grammar does."""
    ends = sum({1 << each for each in vocabulary.eos_token_ids})
    known = (1 << vocabulary.vocab_size) - 1
    for turn in range(TRIED_TOKENS):
        allowed = int.from_bytes(grammar.allowed_tokens(), "little") & known & ~ends
        if not allowed:
            return
        grammar.accept_token((allowed if turn % 2 == 0 else allowed & -allowed).bit_length() - 1)


if __name__ == "__main__":
    main()
