"""Replicas of one model behind Ray Serve: each is an `LLM` in an actor, with its other ranks in its placement group."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import msgspec

from bestiary.api.config import ParallelConfig
from bestiary.api.errors import EngineError, UsageError
from bestiary.engine.arguments import EngineArgs
from bestiary.engine.parallel.ray_actor import Surroundings
from bestiary.engine.parallel.ray_cluster import bundles, join_cluster, leave_cluster, load_ray

from .completions import MAX_BODY_BYTES, Reply, respond, too_large

APPLICATION = "bestiary"
_HEALTH_SECONDS = 2
_ERROR = "bestiary.api.errors."
_LOGGING = {"log_level": "WARNING", "enable_access_log": False}


class Replica:
    """One copy of the model. Serve makes it, calls it with every HTTP request, and asks after its health.

    Requests that come together are computed together: each waits in a thread of its own.
    """

    def __init__(self, arguments: bytes, name: str, surroundings: Surroundings) -> None:
        surroundings.enter()
        from .llm import LLM

        given = msgspec.msgpack.decode(arguments)
        self._name = name
        self._llm = LLM(**given)
        self._threads = ThreadPoolExecutor(given["max_num_seqs"], "bestiary-request")

    async def __call__(self, request: Any) -> Any:
        """From a Starlette request to a Starlette response."""
        from starlette.responses import JSONResponse

        reply = await self._reply(request)
        return JSONResponse(reply.document, reply.status)

    async def _reply(self, request: Any) -> Reply:
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > MAX_BODY_BYTES:
                return too_large()
        gone = threading.Event()
        wanted = (self._llm, self._name, request.method, request.url.path, bytes(body), gone)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, respond, *wanted)
        finally:
            gone.set()  # where Serve cancelled this call, the client has left

    def check_health(self) -> None:
        """Raises what the engine died of; Serve then replaces this replica."""
        failure = self._llm.engine.failure
        if failure is not None:
            raise EngineError(failure.message, code=failure.error_code)

    def __del__(self) -> None:
        if hasattr(self, "_threads"):  # otherwise nothing was loaded
            self._threads.shutdown(wait=False)
            self._llm.close()


@contextmanager
def serving(args: EngineArgs, *, replicas: int, host: str, port: int) -> Iterator[str]:
    """While it lasts, `replicas` copies of a model answer at the URL that it gives.

    Raises:
        UsageError: Ray is missing, Serve runs in the cluster already, or the port is taken.
        EngineError: the replicas did not start.
    """
    from bestiary.engine.loader.vllm_config import parallel_config  # brings in torch, which replicas import later

    parallel = parallel_config(args)
    _require_free(host, port)
    started = join_cluster(replicas * parallel.world_size_across_dp)
    try:
        serve = load_ray("ray.serve")
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        _require_no_serve(serve)
        try:
            _deploy(serve, args, parallel, replicas, {"host": host, "port": port})
            yield f"http://{f'[{host}]' if ':' in host else host}:{port}"
        finally:
            serve.shutdown()
    finally:
        if started:
            leave_cluster()


def _deploy(serve: Any, args: EngineArgs, parallel: ParallelConfig, replicas: int, http: dict[str, Any]) -> None:
    device = args.device
    if device == "auto":
        device = "cuda" if load_ray().cluster_resources().get("GPU") else "cpu"
    sequences, _ = args.step_limits(device)
    args = replace(args, device=device, max_num_seqs=sequences, distributed_executor_backend="ray", progress=False)
    deployment = serve.deployment(Replica).options(
        name=APPLICATION,
        num_replicas=replicas,
        max_ongoing_requests=sequences,
        health_check_period_s=_HEALTH_SECONDS,
        max_queued_requests=-1 if args.max_queue is None else max(1, args.max_queue),
        logging_config=_LOGGING,
        **_resources(parallel, device),
    )
    serve.start(http_options=http, logging_config=_LOGGING)
    bound = deployment.bind(msgspec.msgpack.encode(vars(args)), args.model, Surroundings.of_this_process())
    try:
        serve.run(bound, name=APPLICATION, route_prefix="/", blocking=False)
    except RuntimeError as error:
        raise EngineError(
            "the replicas did not start", code="REPLICAS_FAILED", field=APPLICATION,
            details=_last_words(serve),
            fix="the log files that Ray keeps say more",
        ) from error  # fmt: skip


def _resources(parallel: ParallelConfig, device: str) -> dict[str, Any]:
    """What a replica takes: itself as the first rank, and the others in the rest of its placement group."""
    own = {"num_cpus": 1, "num_gpus": int(device == "cuda")}
    if parallel.world_size_across_dp == 1:
        return {"ray_actor_options": own}
    return {
        "ray_actor_options": own,
        "placement_group_bundles": bundles(parallel, device),
        "placement_group_strategy": "PACK",
    }


def _last_words(serve: Any) -> list[str]:
    """What a replica died of: an error of ours, where there is one in the traceback that Serve kept."""
    application = serve.status().applications.get(APPLICATION)
    texts = [] if application is None else [str(each.message) for each in application.deployments.values()]
    lines = [line for text in texts for line in text.splitlines() if line.strip()]
    ours = max((number for number, line in enumerate(lines) if line.startswith(_ERROR)), default=None)
    return lines[-12:] if ours is None else [lines[ours].removeprefix(_ERROR), *lines[ours + 1 :]]


def _require_no_serve(serve: Any) -> None:
    running = serve.status().applications
    if running:
        raise UsageError(
            "Ray Serve runs in this cluster already, with an address of its own", field="RAY_ADDRESS",
            value=os.environ.get("RAY_ADDRESS"), limit="a cluster without Serve applications",
            details=sorted(running), fix="serve shutdown, on a machine of the cluster",
        )  # fmt: skip


def _require_free(host: str, port: int) -> None:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(found[0], found[1]) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(found[4])
    except OSError as error:
        raise UsageError(
            f"cannot listen there: {error.strerror}", field="--port", value=f"{host}:{port}",
            limit="an address of this machine, and a free port",
        ) from error  # fmt: skip
