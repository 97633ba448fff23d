"""After a model that raised: whose fault it was.

A step that raised computed nothing and lost nothing, so it can be repeated in halves, and those in halves again, until
the requests that make the model fail are known by name. They end with an error, and the others go on with the tokens
they would have had. Where nothing at all succeeded, one token of a made-up request tells whether anything still can.
Memory that ran out is found in the same way: half a batch needs half of it.
"""

from __future__ import annotations

from collections.abc import Iterator

from bestiary.api.errors import EngineError, ModelFailed
from bestiary.api.pooling import PoolingParams
from bestiary.api.sampling import SamplingParams

from .engine import LLMEngine
from .notices import notice
from .sequence import SequenceUpdate

_PROBE = "\0probe"  # no user's request is called so
_FIRST = -(2**62)
_SHORT_OF_MEMORY = ("not enough memory", "out of memory", "can't allocate memory", "cannot allocate memory")
"""How torch's allocators and the system say it, in lower case."""


def step(engine: LLMEngine) -> list[SequenceUpdate]:
    """One step; requests that make the model fail end with an error, in the place of the token they would have had.

    Raises:
        EngineError: whatever it is asked, the model fails (code MODEL_FAILED), or a rank was lost.
    """
    try:
        return engine.step()
    except ModelFailed as error:
        if engine.team is not None:
            raise
        notice(f"{error.message}; looking for the requests that cause it among {len(error.request_ids)}")
        found = list(_divide(engine, error))
        if all(update.token_id is None and update.pooled is None for update in found):
            _probe(engine)
        return found


def _divide(engine: LLMEngine, error: ModelFailed) -> Iterator[SequenceUpdate]:
    """What becomes of the requests of a step that failed. One that was alone in it is tried once more."""
    names = sorted(error.request_ids)
    for half in filter(None, (names[: len(names) // 2], names[len(names) // 2 :])):
        try:
            yield from engine.step(frozenset(half))
        except ModelFailed as again:
            if len(half) > 1:
                yield from _divide(engine, again)
            elif (ended := engine.fail(half[0], _words(again))) is not None:
                yield ended


def _words(error: ModelFailed) -> str:
    cause = error.__cause__
    if isinstance(cause, MemoryError) or any(sign in str(cause).lower() for sign in _SHORT_OF_MEMORY):
        return "OUT_OF_MEMORY: there was not enough memory to compute this request"
    return f"{error.error_code}: {error.message}"


def _probe(engine: LLMEngine) -> None:
    """Raises `EngineError` where the model fails for a prompt of one token as well."""
    token = min(engine.eos_token_ids, default=0)
    generates = engine.checks.pooling is None
    params = SamplingParams(max_tokens=1, temperature=0) if generates else PoolingParams()
    engine.add_request(_PROBE, [token], params, priority=_FIRST)
    try:
        engine.step(frozenset([_PROBE]))
    except ModelFailed as error:
        raise EngineError(
            f"the model fails whatever it is asked: {error.message}",
            code=error.error_code, field=error.field, fix="it is a defect of the plugin, or of this installation",
        ) from error.__cause__  # fmt: skip
    finally:
        engine.abort(_PROBE)
