"""From a model that has its weights to the engine that runs it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from torch import nn

from bestiary.api.config import VllmConfig
from bestiary.api.hook_manager import HookManager
from bestiary.api.structured import StructuredOutputBackend, Vocabulary
from bestiary.nn.graphs import Described, StepRecorder
from bestiary.nn.lora import AdapterSlots
from bestiary.nn.ops.registry import ChosenOps
from bestiary.nn.pooling import Pooler

from .adapters import Adapters
from .arguments import EngineArgs
from .binding import vocab_size
from .capture import capture_steps
from .engine import LLMEngine
from .executor import UniprocExecutor
from .layer_states import state_specs
from .loader.progress import say
from .memory import cache_room
from .model_layers import kv_cache_specs, prompt_salt
from .notices import notice
from .parallel.executor import RankExecutor
from .parallel.team import Team
from .pooler import offer_of
from .runner import ModelRunner
from .scheduler import Scheduler
from .state_rows import WORKING_ROWS


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model with its weights, and what was settled while it was loaded. `eos_token_ids` are all that anything names.

    `make_recorder` gives what records decode steps, if anything does.
    """

    model: nn.Module
    config: VllmConfig
    ops: ChosenOps
    team: Team | None
    slots: AdapterSlots | None
    pooler: Pooler | None
    eos_token_ids: frozenset[int]
    make_recorder: Callable[[nn.Module, VllmConfig], StepRecorder | None]

    def engine(self, args: EngineArgs, hooks: HookManager) -> LLMEngine:
        """The engine, with its memory taken."""
        team = self.team
        num_blocks, num_rows = self._room()
        config = _with_running(self.config, num_rows)
        width = vocab_size(self.model, config)
        runner = self._runner(config, args, num_blocks, num_rows, width)
        adapters = Adapters(config.lora_config)
        engine = LLMEngine(
            config,
            self._schedulers(config, num_blocks, num_rows, adapters),
            UniprocExecutor(runner, config.scheduler_config.async_scheduling)
            if team is None
            else RankExecutor(runner, team, config.scheduler_config.async_scheduling),
            team=team,
            adapters=adapters,
            vocab_size=width,
            eos_token_ids=_within(self.eos_token_ids, width),
            observers=[make() for make in hooks.all("step_observers").values()],
            ops=self.ops.names,
            pooling=offer_of(self.pooler, self.model, config),
            make_backend=partial(_structured_backend, hooks, args.structured_outputs_backend),
        )
        if team is not None:
            weakref.finalize(engine, team.close)  # an engine that nobody closed ends its processes all the same
        return engine

    def _room(self) -> tuple[int, int]:
        """Blocks of KV cache and rows of states, as many as every rank has memory for."""
        team, config, slots = self.team, self.config, self.slots
        local = 1 if team is None else team.seat.local_size
        on_cpu = config.device_config.device == "cpu"  # where the slots' memory is taken when it is written
        reserved = slots.nbytes * local if slots is not None and on_cpu else 0
        specs = kv_cache_specs(self.model).values(), state_specs(self.model).values()
        room = cache_room(*specs, config, reserved, local)
        if team is None:
            return room.num_blocks, room.num_state_rows
        return team.smallest(room.num_blocks), fewest_rows(team, room.num_state_rows)

    def _runner(self, config: VllmConfig, args: EngineArgs, num_blocks: int, num_rows: int, width: int) -> ModelRunner:
        team, ops = self.team, self.ops
        groups = None if team is None else team.groups
        recorder = self.make_recorder(self.model, config)
        say(f"kernels: {kernels_in_words(ops, recorder)}", enabled=args.progress and (team is None or team.leads))
        runner = ModelRunner(
            self.model, config, num_blocks, ops, width, groups, self.slots, self.pooler, recorder, num_rows
        )
        if args.capture_sizes == "at_start":
            capture_steps(runner, args.progress)
        return runner

    def _schedulers(self, config: VllmConfig, num_blocks: int, num_rows: int, adapters: Adapters) -> list[Scheduler]:
        """One for each replica of data parallelism."""
        parallel = config.parallel_config
        return [
            Scheduler(
                config.scheduler_config,
                config.cache_config,
                config.model_config.max_model_len,
                num_blocks,
                prompt_salt(self.model),
                parallel.pipeline_parallel_size,
                adapters,
                num_rows or None,
                shared=self.team is not None,
            )
            for _ in range(parallel.data_parallel_size)
        ]


def kernels_in_words(ops: ChosenOps, recorder: StepRecorder | None) -> str:
    """Whose kernels multiply, and what they say of themselves: "native (bestiary-cpu 0.1.0, avx512, 2 threads)". On a
    GPU these are torch's and core's own in Triton."""
    ours = {"triton"} if any(each.name.startswith("triton") for each in ops.versions.values()) else set()
    names = sorted({ops.versions[name].name for name in ops.packing} or ({"torch"} | ours))
    facts: Mapping[str, str | int] = recorder.describe() if isinstance(recorder, Described) else {}
    known = [str(facts[name]) for name in ("library", "instruction_set") if name in facts]
    known += [f"{facts['threads']} threads"] if "threads" in facts else []
    return ", ".join(names) + (f" ({', '.join(known)})" if known else "")


def fewest_rows(team: Team, num_state_rows: int) -> int:
    """Rows of states on every rank: the fewest of those that have such layers; 0 where no rank has one."""
    most = -team.smallest(-num_state_rows)
    return team.smallest(num_state_rows or most)


def _with_running(config: VllmConfig, num_state_rows: int) -> VllmConfig:
    """The configuration with no more running sequences than there are two rows of states for."""
    wanted = config.scheduler_config.max_num_seqs
    if num_state_rows == 0 or num_state_rows >= WORKING_ROWS * wanted:
        return config
    running = num_state_rows // WORKING_ROWS
    notice(f"max_num_seqs={running} instead of {wanted}: there is memory for {num_state_rows} rows of layers' states")
    return replace(config, scheduler_config=replace(config.scheduler_config, max_num_seqs=running))


def _within(eos_token_ids: frozenset[int], vocab_size: int) -> frozenset[int]:
    """The end-of-sequence ids that the model can draw; others are left out, and that is said."""
    outside = sorted(each for each in eos_token_ids if not 0 <= each < vocab_size)
    if outside:
        notice(f"end-of-sequence ids {outside[:8]} are left out: the model draws ids from 0 to {vocab_size - 1}")
    return eos_token_ids.difference(outside)


def _structured_backend(hooks: HookManager, name: str, vocabulary: Vocabulary) -> StructuredOutputBackend:
    backend: StructuredOutputBackend = hooks.get("structured_output_backends", name)(vocabulary)
    return backend
