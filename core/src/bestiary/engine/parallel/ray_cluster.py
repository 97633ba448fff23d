"""The Ray cluster, and the places in it that ranks of one engine take.

Ray's ports listen on every interface, and whoever can speak to them can run code. A cluster that is started here
therefore has a secret of its own, which only this process and those it starts know.
"""

from __future__ import annotations

import os
import secrets
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bestiary.api.config import ParallelConfig
from bestiary.api.errors import EngineError, UsageError
from bestiary.engine.notices import notice

_SOON_SECONDS, _PATIENCE_SECONDS = 5.0, 300.0
_STORE_BYTES = 128 * 1024**2
"""Of a cluster started here, which exchanges nothing large."""
_lock = threading.Lock()
_users = 0


def load_ray(part: str = "ray") -> Any:
    """The package. Raises `UsageError` where it is not installed."""
    import importlib

    try:
        return importlib.import_module(part)
    except ImportError as error:
        raise UsageError(
            f"Ray cannot be imported: {error}", field="distributed_executor_backend", value="ray",
            fix="pip install 'bestiary[ray]'",
        ) from error  # fmt: skip


def join_cluster(ranks: int) -> bool:
    """Be part of a cluster: the one that this process already is in, the one at RAY_ADDRESS, else a new one.

    Args:
        ranks: a new cluster on this machine has room for at least so many.

    Returns:
        Whether it is one that was started here; `leave_cluster` must be called then, and ends it after its last user.

    Raises:
        UsageError: Ray is missing, or cannot be used from here.
    """
    global _users
    with _lock:
        _guard_new_cluster()
        ray = load_ray()
        address = os.environ.get("RAY_ADDRESS", "local")
        if address.startswith("ray://") or load_ray("ray.util.client").ray.is_connected():
            raise UsageError(
                "this process speaks to Ray from outside of its cluster (Ray Client), but the first rank runs in it",
                field="distributed_executor_backend", value="ray", fix="run it on a machine of the cluster",
            )  # fmt: skip
        if ray.is_initialized():
            _users += bool(_users)
            return bool(_users)
        started = address == "local"
        own: dict[str, Any] = {
            "num_cpus": max(ranks, os.cpu_count() or 1), "object_store_memory": _STORE_BYTES,
            "include_dashboard": False,
        }  # fmt: skip
        try:
            ray.init(address, logging_level="error", **(own if started else {}))
        except (RuntimeError, ValueError, OSError) as error:
            raise UsageError(
                f"there is no way into the Ray cluster: {str(error).strip().partition(chr(10))[0]}",
                field="RAY_ADDRESS", value=address,
                limit="where a cluster runs, as host:port; without it, one is started on this machine",
            ) from error  # fmt: skip
        _users += started
        return started


def leave_cluster() -> None:
    """After `join_cluster` returned true, once."""
    global _users
    with _lock:
        _users -= 1
        if not _users:
            load_ray().shutdown()


def _guard_new_cluster() -> None:
    """Ray reads the environment when it is imported. Before that is done: a secret, no reports to its makers."""
    if os.environ.get("RAY_ADDRESS", "local") != "local" or "RAY_AUTH_MODE" in os.environ:
        return
    if "ray" not in sys.modules:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    elif not load_ray().is_initialized():
        raise UsageError(
            "Ray was imported before its new cluster could be given a secret", field="RAY_AUTH_MODE",
            limit="`import ray` after the engine was made, or ray.init() before",
            fix="call ray.init() yourself, or set RAY_AUTH_MODE (token or disabled) before Python starts",
        )  # fmt: skip


def bundles(parallel: ParallelConfig, device: str) -> list[dict[str, float]]:
    """What to reserve. A bundle lies on one machine.

    On GPUs it is a whole pipeline stage, so that tensor-parallel ranks, which exchange most, never lie apart; on CPUs
    it is one rank.
    """
    ranks = parallel.tensor_parallel_size if device == "cuda" else 1
    one: dict[str, float] = {"CPU": ranks, "GPU": ranks} if device == "cuda" else {"CPU": ranks}
    return [dict(one) for _ in range(parallel.world_size_across_dp // ranks)]


@dataclass(frozen=True, slots=True)
class Places:
    """Reserved bundles. reserved_here: as opposed to those that this process itself was started in."""

    group: Any
    ranks_each: int
    reserved_here: bool

    def options(self, rank: int, device: str) -> dict[str, Any]:
        """What Ray is told about the actor of `rank`."""
        strategies = load_ray("ray.util.scheduling_strategies")
        return {
            "num_cpus": 1,
            "num_gpus": int(device == "cuda"),
            "max_restarts": 0,
            "scheduling_strategy": strategies.PlacementGroupSchedulingStrategy(
                self.group, rank // self.ranks_each, placement_group_capture_child_tasks=False
            ),
        }

    def release(self) -> None:
        if self.reserved_here:
            load_ray().util.remove_placement_group(self.group)


def reserve(parallel: ParallelConfig, device: str, *, started_here: bool) -> Places:
    """Reserve room for all ranks, the first of them on this machine.

    In an actor that was started in a placement group, as Ray Serve does, that group is the room.

    Raises:
        UsageError: the group that this process was started in is another one than the ranks need.
        EngineError: the cluster has no room.
    """
    ray = load_ray()
    wanted = bundles(parallel, device)
    each = parallel.world_size_across_dp // len(wanted)
    given = ray.util.get_current_placement_group()
    if given is not None:
        if not _same(given.bundle_specs, wanted):
            raise UsageError(
                "the placement group that this process was started in is not what the ranks need",
                field="placement_group_bundles", value=given.bundle_specs, limit=f"{wanted}",
            )  # fmt: skip
        return Places(given, each, reserved_here=False)
    here = f"node:{ray.util.get_node_ip_address()}"
    group = ray.util.placement_group([{**wanted[0], here: 0.001}, *wanted[1:]], strategy="PACK")
    if not group.wait(_SOON_SECONDS):
        if not started_here:
            notice(f"waiting for room in the Ray cluster: {_in_words(wanted)}")
        if started_here or not group.wait(_PATIENCE_SECONDS):
            ray.util.remove_placement_group(group)
            raise EngineError(
                "the Ray cluster has no room for the model's ranks", code="NO_ROOM", field="placement_group_bundles",
                value=_in_words([ray.available_resources()]),
                limit=f"{_in_words(wanted)}; the first of them on this machine",
                fix="ray status, on a machine of the cluster, says what is taken",
            )  # fmt: skip
    return Places(group, each, reserved_here=True)


def _same(given: Sequence[Mapping[str, float]], wanted: Sequence[Mapping[str, float]]) -> bool:
    return len(given) == len(wanted) and all(
        has.get(name, 0) >= count
        for has, needs in zip(given, wanted, strict=True)
        for name, count in needs.items()
    )  # fmt: skip


def _in_words(counted: Sequence[Mapping[str, float]]) -> str:
    parts = (
        " and ".join(f"{each.get(name, 0):g} {name}" for name in ("CPU", "GPU") if each.get(name)) for each in counted
    )
    return ", ".join(part or "nothing" for part in parts)
