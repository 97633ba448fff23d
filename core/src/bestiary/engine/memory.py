"""How many KV-cache blocks there are: from what the user allows, what the machine has, and what could ever be used."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from bestiary.api.config import VllmConfig
from bestiary.api.errors import UsageError
from bestiary.nn.attention.backend import KVCacheSpec
from bestiary.nn.state.spec import StateSpec

from .state_rows import WORKING_ROWS

SHARE_OF_FREE_MEMORY = 0.5
DEFAULT_CPU_BYTES = 4 * 1024**3
CUDA_MARGIN_BYTES = 1024**3
"""Of a GPU's free memory, what a KV cache leaves at least, where its size is chosen here: for activations, the pool of
captured steps, and the workspaces of kernels and libraries (cuBLAS takes 32 MiB a stream on Hopper)."""


def bytes_per_block(specs: Iterable[KVCacheSpec], block_size: int) -> int:
    return sum(spec.bytes_per_token for spec in specs) * block_size


def free_memory(device: str) -> int:
    """Bytes that can be taken now: of the GPU, or of the machine (`MemAvailable`, and the control group's limit)."""
    if device != "cpu":
        free, _ = torch.cuda.mem_get_info()
        return free
    if not Path("/proc/meminfo").exists():  # not Linux: what the machine has is the nearest that every system tells
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and (cap := limit.read_text().strip()) != "max":
        free = min(free, int(cap) - int(used.read_text()))
    return free


@dataclass(frozen=True, slots=True)
class CacheRoom:
    """How much there is for what sequences keep.

    Attributes:
        num_blocks: KV-cache blocks of every layer. num_state_rows: rows of every layer with a state; 0 where none has.
    """

    num_blocks: int
    num_state_rows: int


def cache_room(
    specs: Iterable[KVCacheSpec],
    states: Iterable[StateSpec],
    config: VllmConfig,
    reserved: int = 0,
    sharers: int = 1,
    free: int | None = None,
) -> CacheRoom:
    """Blocks and rows to allocate; arguments as for `num_kv_blocks`.

    Each running sequence needs two rows of states, and as many again as run are kept for the prefix cache. Rows and
    blocks share what there is: one sequence of `max_model_len` tokens always has its blocks (or all of `num_blocks`),
    and of what is left rows take at most half of the whole, or all of it where no layer caches tokens.

    Raises:
        UsageError: not even one sequence fits.
    """
    row = sum(spec.bytes_per_row for spec in states)
    if row == 0:
        return CacheRoom(num_kv_blocks(specs, config, reserved, sharers, free), 0)
    specs = list(specs)
    kept = (config.cache_config.num_blocks or _per_sequence(config)) * bytes_per_block(
        specs, config.cache_config.block_size
    )
    least = WORKING_ROWS * row
    budget = cache_budget(config, kept + least, reserved, sharers, free)
    room = min(max(budget // 2, least), budget - kept) if kept else budget
    if room < least:
        raise UsageError(
            f"no memory for the states of layers: those of one sequence take {least} bytes",
            field="kv_cache_memory_bytes", value=budget, limit=f"at least {kept + least}, with the KV cache",
            fix="more kv_cache_memory_bytes" + (", or a smaller max_model_len" if kept else ""),
        )  # fmt: skip
    wanted = (WORKING_ROWS + config.cache_config.enable_prefix_caching) * config.scheduler_config.max_num_seqs
    rows = min(wanted, room // row)
    return CacheRoom(num_kv_blocks(specs, config, reserved, sharers, free, states=rows * row), rows)


def _per_sequence(config: VllmConfig) -> int:
    """Blocks of one sequence of `max_model_len` tokens."""
    return -(-config.model_config.max_model_len // config.cache_config.block_size)


def cache_budget(config: VllmConfig, needed: int, reserved: int, sharers: int, free: int | None) -> int:
    """Bytes for what sequences keep: what the user allows, or a share of what is free; on a CPU more than
    `DEFAULT_CPU_BYTES` of it where one sequence has `needed` more."""
    if config.cache_config.memory_bytes is not None:
        return config.cache_config.memory_bytes
    free = free_memory(config.device_config.device) if free is None else free
    budget = int((free - reserved) * SHARE_OF_FREE_MEMORY)
    if config.device_config.device == "cpu":
        return min(budget // sharers, max(DEFAULT_CPU_BYTES // sharers, needed))
    return max(0, min(budget, free - reserved - CUDA_MARGIN_BYTES))


def num_kv_blocks(
    specs: Iterable[KVCacheSpec],
    config: VllmConfig,
    reserved: int = 0,
    sharers: int = 1,
    free: int | None = None,
    states: int = 0,
) -> int:
    """The number of blocks to allocate.

    `num_blocks` if set; else what fits `memory_bytes`, or half of the free memory (on a CPU 4 GiB of it, unless one
    sequence needs more; on a GPU at most what leaves `CUDA_MARGIN_BYTES`), but never more than `max_num_seqs` sequences
    of `max_model_len` tokens can use. `reserved` bytes will be taken by something else first, and `states` bytes of
    what there is by layers' states; `sharers` processes divide what is free of a CPU's memory. `free` is what is free
    on the machine that is meant, where that is not this one.

    Raises:
        UsageError: not even one sequence of `max_model_len` tokens fits; with the length that would.
    """
    cache, block_size = config.cache_config, config.cache_config.block_size
    per_sequence = _per_sequence(config)
    useful = per_sequence * config.scheduler_config.max_num_seqs
    if cache.num_blocks is not None:
        return cache.num_blocks
    size = bytes_per_block(specs, block_size)
    if size == 0:
        return useful
    budget = cache_budget(config, per_sequence * size + states, reserved, sharers, free) - states
    fitting = budget // size
    if fitting < 1:
        raise UsageError(
            f"no memory for a KV cache: a block of {block_size} tokens takes {size} bytes",
            field="kv_cache_memory_bytes",
            value=budget,
            limit=f"at least {per_sequence * size}, for one sequence of max_model_len",
            fix="more kv_cache_memory_bytes, or a smaller max_model_len",
        )
    if fitting < per_sequence:
        longest = config.model_config.max_model_len
        raise UsageError(
            f"max_model_len={longest} needs {per_sequence * size} bytes of KV cache; {budget} are available",
            field="max_model_len",
            value=longest,
            limit=f"at most {fitting * block_size}",
            fix=f"max_model_len={fitting * block_size}, or more kv_cache_memory_bytes",
        )
    return min(fitting, useful)
