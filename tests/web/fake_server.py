"""A server with the page and a made-up model behind the API, whose answers, states and faults a test chooses."""

from __future__ import annotations

import asyncio
import copy
import json
import math
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from bestiary.serve.web.page import routes

PATIENCE = 20.0  # seconds that anything here may take before it counts as broken

INFO: dict[str, Any] = {
    "model": {
        "name": "smollm2", "architecture": "LlamaForCausalLM", "distribution": "bestiary-llama", "version": "0.1.0",
        "model_class": "LlamaForCausalLM", "dtype": "bfloat16", "quantization": None, "max_model_len": 8192,
        "vocab_size": 49152, "max_num_seqs": 64, "num_kv_blocks": 4096, "block_size": 16, "parameters": 134515008,
        "weight_bytes": 92_600_000, "device": "cpu", "attention_backend": "paged",
        "ops": {"rms_norm": "torch", "silu_and_mul": "torch"}, "capabilities": ["SupportsLoRA", "SupportsPP"],
    },
    "server": {"version": "0.1.0", "started": 1_795_740_148.8, "uptime_s": 74.2,
               "phases": {"start the process": 0.1, "import torch": 0.9, "read the description": 0.2,
                          "load the model": 1.9}},
    "defaults": {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "max_tokens": None, "seed": None,
                 "presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": 1.0},
    "adapters": [], "limits": {},
}  # fmt: skip


def content(text: str) -> list[dict[str, Any]]:
    """The deltas of a text, about a word each."""
    return [{"content": word} for word in text.replace(" ", " \0").split("\0")]


@dataclass
class Script:
    """One answer: its deltas in order. `hold`: after so many of them, wait for `Fake.go_on`."""

    deltas: list[dict[str, Any]] = field(default_factory=lambda: content("A bestiary is a book of beasts."))
    finish: str | None = "stop"
    pause: float = 0.0  # seconds before each delta
    hold: int | None = None
    error: dict[str, Any] | None = None  # an error event at the end of the stream
    status: int = 200  # otherwise `error` is the body
    retry_after: str | None = None


class Fake:
    """What the API says. Tests change its attributes while the server runs."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """A server that is ready, open and lively, and has been asked nothing."""
        self.state = "ready"
        self.key: str | None = None
        self.info = copy.deepcopy(INFO)
        self.models: list[dict[str, Any]] = [{"id": "smollm2", "object": "model"}]
        self.script = Script()
        self.requests: list[dict[str, Any]] = []
        self.go_on = threading.Event()
        self.left = threading.Event()  # a client has gone away in the middle of an answer
        self.stats: Callable[[], dict[str, Any]] = lively_stats
        self.down = False  # every call of the API fails without an explanation

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                *routes(),
                Route("/v1/models", self._guarded(lambda: {"object": "list", "data": self.models})),
                Route("/server/info", self._guarded(lambda: self.info)),
                Route("/server/stats", self._guarded(lambda: {**self.stats(), "state": self.state})),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
            ]
        )

    def _guarded(self, body: Any) -> Any:
        async def answer(request: Request) -> Response:
            return self._refused(request) or JSONResponse(body())

        return answer

    def _refused(self, request: Request) -> Response | None:
        if self.down:
            return Response("bad gateway", status_code=502)
        if self.key is None or request.headers.get("authorization") == f"Bearer {self.key}":
            return None
        error = {
            "message": "The API key is missing or wrong.",
            "type": "invalid_request_error",
            "code": "invalid_api_key",
        }
        return JSONResponse({"error": error}, status_code=401)

    async def _chat(self, request: Request) -> Response:
        if refused := self._refused(request):
            return refused
        self.requests.append(await request.json())
        script = self.script
        if script.status != 200:
            headers = {"retry-after": script.retry_after} if script.retry_after else {}
            return JSONResponse({"error": script.error}, status_code=script.status, headers=headers)
        return StreamingResponse(self._stream(script, request), media_type="text/event-stream")

    async def _stream(self, script: Script, request: Request) -> AsyncIterator[str]:
        yield ": the heartbeat of a server\n\n"
        for number, delta in enumerate(script.deltas):
            if number == script.hold:
                await self._held(request)
            if script.pause:
                await asyncio.sleep(script.pause)
            yield event({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
        if script.error:
            yield "event: error\n" + event({"error": script.error})
            return
        if script.finish is None:
            return
        yield event({"choices": [{"index": 0, "delta": {}, "finish_reason": script.finish}]})
        usage = {
            "prompt_tokens": 12,
            "completion_tokens": len(script.deltas),
            "prompt_tokens_details": {"cached_tokens": 8},
        }
        yield event({"choices": [], "usage": usage})
        yield "data: [DONE]\n\n"

    async def _held(self, request: Request) -> None:
        """Wait for the test. (Starlette cancels a stream whose client has left, or the request tells it.)"""
        deadline = time.monotonic() + PATIENCE
        try:
            while not self.go_on.is_set() and time.monotonic() < deadline:
                if await request.is_disconnected():
                    raise asyncio.CancelledError
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            self.left.set()
            raise


def event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"


def lively_stats() -> dict[str, Any]:
    """Statistics of a busy server: smooth functions of the time, so that pictures look like something."""
    now = time.monotonic()
    wave = math.sin(now / 6) + 0.35 * math.sin(now / 1.7)
    generated = 160 * now - 320 * math.cos(now / 6) - 60 * math.cos(now / 1.7)
    return stats(
        t=now,
        running=max(0, round(5 + 3 * wave)),
        waiting=max(0, round(2.5 * wave - 1)),
        generated=round(generated),
        prompt=round(48 * now - 90 * math.cos(now / 4)),
        used=round(1700 + 600 * wave),
    )


def stats(t: float, *, running: int = 0, waiting: int = 0, generated: int = 0, prompt: int = 0, used: int = 0,
          restarts: int = 0) -> dict[str, Any]:  # fmt: skip
    return {
        "t": t, "state": "ready", "running": running, "waiting": waiting, "restarts": restarts,
        "kv": {"used": used, "total": 4096, "block_size": 16},
        "prefix": {"queried_tokens": prompt, "hit_tokens": round(0.62 * prompt)},
        "tokens": {"prompt": prompt, "generated": generated},
        "requests": {"finished": 418, "failed": 0, "aborted": 7, "shed": 2},
        "preemptions": 3,
        "latency": {
            "ttft": {"p50": 0.082, "p90": 0.21, "p99": 0.64},
            "itl": {"p50": 0.021, "p90": 0.034, "p99": 0.071},
            "e2e": {"p50": 2.4, "p90": 5.9, "p99": 11.2},
        },
    }  # fmt: skip


@contextmanager
def served(fake: Fake) -> Iterator[str]:
    """The address of a server with what `fake` says, while the block runs."""
    server = uvicorn.Server(
        uvicorn.Config(
            fake.app(), port=0, log_level="error", http="h11", ws="none", lifespan="off", timeout_graceful_shutdown=1
        )
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + PATIENCE
    while not server.started:
        if time.monotonic() > deadline or not thread.is_alive():
            raise RuntimeError("the fake server did not start")
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        fake.go_on.set()
        server.should_exit = True
        thread.join(PATIENCE)
