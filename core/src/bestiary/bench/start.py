"""`bench start`: from the command `bestiary serve MODEL` to the first token of a streamed answer, part by part."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from bestiary.api.errors import EngineError
from bestiary.serve.cli.chat.server import Server

from .hardware import cpu_name
from .record import load_average, new_record
from .serving import answered, serving

_LOOK_SECONDS = 0.01
_NOT_OURS = ("import torch", "load the model")
"""Phases whose length is the library's and the weights'."""


@dataclass(frozen=True, slots=True)
class StartWork:
    """Starts, one after another; each is told, and their medians."""

    repeats: int = 5


def run_start(model: str, engine: dict[str, Any], work: StartWork, say: Callable[[str], None]) -> dict[str, Any]:
    """The record: seconds from the command to each thing that happens, and the seconds of each phase of the engine."""
    engine = {name: value for name, value in engine.items() if value is not None and name != "progress"}
    load, rounds = load_average(), []
    for number in range(work.repeats):
        found = _start(model, engine)
        rounds.append(found)
        say(
            f"start {number + 1}: {found['first_token']:.2f} s to the first token, {found['elsewhere']:.2f} s elsewhere"
        )
    names = ("listening", "ready", "first_token", "elsewhere")
    results = {
        **{name: median(each[name] for each in rounds) for name in names},
        "phases": {name: median(each["phases"][name] for each in rounds) for name in rounds[0]["phases"]},
        "rounds": rounds,
    }
    hardware = {"name": cpu_name()}
    return new_record(
        "start", model, workload=asdict(work), engine=engine, hardware=hardware,
        load_average={"start": load, "end": load_average()}, results=results,
    )  # fmt: skip


def _start(model: str, engine: dict[str, Any]) -> dict[str, Any]:
    """One start. elsewhere: of the time to the first token, what neither importing torch nor the weights took."""
    started = time.perf_counter()
    with serving(model, engine) as (server, process):
        answered(server, process, "/health/live", _LOOK_SECONDS)
        listening = time.perf_counter() - started
        answered(server, process, "/health/ready", _LOOK_SECONDS)
        ready = time.perf_counter() - started
        _first_token(server, model)
        first_token = time.perf_counter() - started
        phases = answered(server, process, "/server/info", _LOOK_SECONDS)["server"]["phases"]
    elsewhere = first_token - sum(phases[name] for name in _NOT_OURS)
    return {
        "listening": listening, "ready": ready, "first_token": first_token, "elsewhere": elsewhere, "phases": phases,
    }  # fmt: skip


def _first_token(server: Server, model: str) -> None:
    """Return when it is there. Raises `EngineError`: the answer is another than a stream with a token."""
    body = {"model": model, "prompt": "Hello", "max_tokens": 4, "ignore_eos": True, "temperature": 0, "stream": True}
    connection = server.connect()
    try:
        connection.request("POST", server.path("completions"), json.dumps(body), server.headers())
        response: http.client.HTTPResponse = connection.getresponse()
        while line := response.readline():
            if line.startswith(b"data: {") and (choices := json.loads(line[6:]).get("choices")) and choices[0]["text"]:
                return
    finally:
        connection.close()
    raise EngineError(f"the server answered no token, with status {response.status}", code="BENCH_FAILED")
