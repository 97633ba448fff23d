"""`bench http`: what the HTTP layer costs, by the same work given to a server and to the offline API, in turn."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from bestiary.api.errors import EngineError
from bestiary.api.sampling import SamplingParams
from bestiary.serve.cli.chat.server import Server
from bestiary.serve.llm import LLM

from .load.arrivals import Closed
from .load.load import Load
from .load.work import Work
from .record import load_average, new_record
from .serving import START_SECONDS, answered, serving

_LOOK_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class HttpWork:
    """`streams` answers of `output_len` tokens at once, after prompts of `input_len`; medians of `repeats` rounds."""

    streams: int = 32
    input_len: int = 16
    output_len: int = 64
    repeats: int = 3


def run_http(model: str, engine: dict[str, Any], work: HttpWork, say: Callable[[str], None]) -> dict[str, Any]:
    """The record: new tokens a second both ways, round by round, and what is lost over HTTP."""
    longest = work.input_len + work.output_len
    engine = {name: value for name, value in engine.items() if value is not None and name != "progress"}
    engine |= {"max_model_len": longest, "max_num_seqs": work.streams}
    with (
        LLM(model, progress=False, enable_prefix_caching=False, **engine) as llm,
        serving(model, engine, "--no-enable-prefix-caching") as (server, process),
    ):
        answered(server, process, "/health/ready", _LOOK_SECONDS)
        asked = Work(
            model, "completions", requests=work.streams, shortest=work.input_len, longest=work.input_len,
            output_len=work.output_len, vocab_size=llm.engine.vocab_size,
        )  # fmt: skip
        _offline(llm, asked, work)
        asyncio.run(_over_http(server, asked, work))
        rounds = []
        for number in range(work.repeats):
            offline, http = _offline(llm, asked, work), asyncio.run(_over_http(server, asked, work))
            rounds.append({"offline": offline, **http})
            say(f"round {number + 1}: {offline:.1f} tokens/s offline, {http['http']:.1f} over HTTP")
    found = {name: median(each[name] for each in rounds) for name in rounds[0]}
    lost = 1 - median(each["http"] / each["offline"] for each in rounds)
    results = {**found, "lost": lost, "rounds": rounds}
    return new_record("http", model, workload=asdict(work), engine=engine, results=results, load_average=load_average())


def _offline(llm: LLM, asked: Work, work: HttpWork) -> float:
    """New tokens a second."""
    params = SamplingParams(temperature=0, max_tokens=work.output_len, ignore_eos=True)
    prompts = [asked.body(number)["prompt"] for number in range(work.streams)]
    started = time.perf_counter()
    llm.generate(prompts, params, use_tqdm=False)
    return work.streams * work.output_len / (time.perf_counter() - started)


async def _over_http(server: Server, asked: Work, work: HttpWork) -> dict[str, float]:
    """New tokens a second, and seconds of computing that the client took for a thousand of them."""
    async with Load(server, asked, timeout=START_SECONDS) as load:
        started = time.perf_counter()
        run = await load.run(Closed(work.streams))
        seconds = time.perf_counter() - started
    failed = [each.error for each in run.samples if each.error is not None]
    tokens = sum(each.tokens for each in run.samples)
    if failed or tokens != work.streams * work.output_len:
        raise EngineError(f"the server answered {tokens} tokens, with errors: {failed[:3]}", code="BENCH_FAILED")
    return {"http": tokens / seconds, "client_cpu_per_1000": 1000 * run.cpu / tokens}
