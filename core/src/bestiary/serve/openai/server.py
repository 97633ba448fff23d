"""`GET /server/info` and `GET /server/stats`: what the page shows, and anybody who is curious."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec

from bestiary import __version__
from bestiary.api.sampling import MAX_LOGPROBS, MAX_N, SamplingParams

from .documents import answer
from .schemas.base import MAX_BATCH

if TYPE_CHECKING:
    from .service import Call

_SHOWN = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")


async def info(call: Call) -> Any:
    """The model, its adapters, the defaults of sampling, and the limits of requests."""
    service, llm = call.service, call.service.llm
    facts: dict[str, Any] | None = None
    if llm.info is not None:
        facts = msgspec.to_builtins(llm.info) | {"name": service.names[0]}
        del facts["adapters"]
    adapters = [{"name": each.name, "rank": each.rank, "modules": each.target_modules} for each in llm.list_loras()]
    defaults = SamplingParams(**{**service.options.sampling, "max_tokens": None})
    return answer(
        call,
        {
            "model": facts,
            "server": {
                "version": __version__,
                "state": llm.state,
                "started": service.started,
                "uptime_s": time.time() - service.started,
                "names": list(service.names),
                "phases": dict(llm.phases),
            },
            "defaults": {name: getattr(defaults, name) for name in _SHOWN} | {"max_tokens": None},
            "adapters": adapters,
            "limits": {
                "max_body": service.options.max_body,
                "max_queue": llm.args.max_queue,
                "max_prompts": MAX_BATCH,
                "max_n": MAX_N,
                "max_logprobs": MAX_LOGPROBS,
            },
        },
    )


async def stats(call: Call) -> Any:
    """Where things stand: totals since the start, and latencies of the last five minutes. Cheap enough to poll."""
    metrics, llm = call.service.metrics, call.service.llm
    found = llm.stats()
    return answer(
        call,
        {
            "t": time.monotonic(),
            "state": llm.state,
            "running": found.running,
            "waiting": found.waiting,
            "kv": {
                "used": found.used_blocks,
                "total": found.blocks,
                "block_size": None if llm.info is None else llm.info.block_size,
            },
            "prefix": {"queried_tokens": found.prefix_queries, "hit_tokens": found.prefix_hits},
            "tokens": metrics.tokens,
            "requests": metrics.outcomes,
            "preemptions": found.preemptions,
            "latency": {name: window.quantiles() for name, window in metrics.latency.items()},
            "restarts": llm.restarts,
        },
    )
