"""Bringing a team together: starting other ranks, meeting, dividing the cores."""

from __future__ import annotations

import os
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

from bestiary.api.entries import Resolution
from bestiary.engine.arguments import EngineArgs
from bestiary.engine.loader.description import ModelDescription

from .by_hand import needed
from .messages import Start
from .team import Team
from .workers import LocalWorkers, Workers


def assemble(
    team: Team, args: EngineArgs, description: ModelDescription, found: Resolution, eos_token_ids: frozenset[int]
) -> None:
    """Start what this process is to start, and connect; afterwards the model's collectives work.

    Raises:
        UsageError: the class was registered by hand, and another process could not import it.
        EngineError: a rank could not start, with its own error; or the ranks did not meet.
    """
    seat = team.seat
    workers: Workers | None = None
    start = _start_of(args, description, eos_token_ids)
    if seat.starts:
        start["models"] = needed(found)
    if seat.starts and team.parallel.distributed_executor_backend == "ray":
        from .ray_workers import RayWorkers

        workers = in_cluster = RayWorkers(team.parallel, team.device, seat, start)
        team.seat = in_cluster.seat
    threads = max(1, _cores() // team.seat.local_size)
    if seat.starts and workers is None:
        workers = LocalWorkers([(rank, Start(**start, seat=seat.of(rank))) for rank in seat.starts], threads)
    team.take_threads(threads)
    try:
        team.assemble(workers)
    finally:
        if seat.path is not None and seat.starts:
            shutil.rmtree(Path(seat.path).parent, ignore_errors=True)


def _start_of(args: EngineArgs, description: ModelDescription, eos_token_ids: frozenset[int]) -> dict[str, Any]:
    """The arguments as data. A function in `hf_overrides` cannot travel, so what it made does."""
    given = {each.name: getattr(args, each.name) for each in fields(args)}
    given |= {name: dict(given[name]) for name in ("ops", "plugin", "eplb_config", "lora_modules")}
    given["progress"] = False
    made = callable(args.hf_overrides)
    given["hf_overrides"] = {} if made else dict(given["hf_overrides"])
    return {
        "arguments": given,
        "config_data": dict(description.data) if made else None,
        "eos_token_ids": tuple(sorted(eos_token_ids)),
    }


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
