"""A model divided among ranks that are threads of this process, with real collectives among them (gloo, loopback).

The parts are built and loaded one after the other, since a build scope and the choice of ops hold for the process; the
steps run together. What one rank raises ends the wait of the others, so that nothing hangs longer than `PATIENCE`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from bestiary.api.config import ParallelConfig, VllmConfig
from bestiary.api.errors import EngineError
from bestiary.api.sampling import SamplingParams
from bestiary.engine.arguments import EngineArgs
from bestiary.engine.batch import ForwardBatch
from bestiary.engine.binding import adapter_slots, bind_attention, target_of, vocab_size
from bestiary.engine.build import EngineBuilder
from bestiary.engine.loader.load import build_model, load_model
from bestiary.engine.parallel.executor import run_stage
from bestiary.engine.parallel.places import connected_groups, groups_of
from bestiary.engine.plan import LoRALoad, NewRequest, ScheduledItem, StepPlan, StepResult
from bestiary.engine.pooler import pooler_of
from bestiary.engine.runner import ModelRunner
from bestiary.engine.stage import Made
from bestiary.nn.graphs import StepRecorder
from bestiary.nn.ops.registry import ChosenOps, choose_ops
from bestiary.nn.parallel import use_groups
from bestiary.nn.parallel.distributed import PEER_LOST, PEER_STALLED, Store, TorchGroup, dist
from bestiary.nn.placement import finish
from bestiary.testing.logits import state_rows

R = TypeVar("R")

PATIENCE = 20.0
"""Seconds that a rank waits for another."""
BLOCKS = 48
STATE_ROWS = 2
_ID = "bestiary.testing.ranks"


class Ranks:
    """The ranks of one copy of a model. Use as a context manager, or `close` it.

    Attributes:
        runners: one a rank, in their order; `runners[r].model` is rank r's part.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        blocks: int = BLOCKS,
        patience: float = PATIENCE,
        recorder: Callable[[], StepRecorder] | None = None,
        **options: Any,
    ) -> None:
        """`options`: of `EngineArgs`; in float32 on the CPU unless they say otherwise. `recorder` makes what records
        a rank's decode steps; nothing does where it is None.

        Raises:
            UsageError: the model cannot be divided like this.
        """
        self.patience, self._recorder = patience, recorder
        args = EngineArgs.make(str(model), {**_PLAIN, **options})
        self._builder = EngineBuilder(args, together=False)
        self._model_class, config = self._builder.configure()
        hooks = self._builder.hooks
        self._ops = choose_ops(target_of(config), config.op_config.implementations, hooks.all("op_implementations"))
        self.runners: list[ModelRunner] = []
        for rank in range(self._builder.parallel.world_size):
            self.runners.append(self._rank(config, replace(self._builder.parallel, rank=rank), blocks))
        store = dist.HashStore()
        self.together(lambda runner, rank: self._connect(runner, rank, store))

    def logits(self, plan: StepPlan) -> torch.Tensor:
        """The logits that `execute` would draw from, as `ModelRunner.logits`."""
        outcomes = self.together(lambda runner, _: _step(runner, plan, all_logits=True))
        logits = outcomes[self._sampler][1]
        if not isinstance(logits, torch.Tensor):
            raise ValueError("this plan wants no logits")
        return logits

    def execute(self, plan: StepPlan) -> StepResult:
        """One step of all ranks, as `ModelRunner.execute`."""
        outcomes = self.together(lambda runner, _: _step(runner, plan))
        batch, logits = outcomes[self._sampler]
        if batch is None:
            return StepResult(plan.step, {})
        result = self.runners[self._sampler].draw(plan, batch, logits)
        for runner, (own, _) in zip(self.runners, outcomes, strict=True):
            if own is not None:
                runner.record(own, result)
        return result

    def add_adapter(self, name: str, path: str) -> str:
        """Every rank reads its part of an adapter, whose id comes back: the engine's `enable_lora` is wanted for it.

        Raises:
            BadAdapter: it does not fit one of them.
        """
        return self.together(lambda runner, _: runner.add_adapter(name, path))[0].lora_id

    def prompt_logits(
        self, token_ids: Sequence[int], ends: Sequence[int] = (), lora_id: str | None = None
    ) -> torch.Tensor:
        """Logits ``[len(token_ids), vocabulary]`` of every position, the prompt computed in pieces up to `ends`, and
        with an adapter, which is put into slot 0."""
        rows, start, total = [], 0, len(token_ids)
        new = NewRequest(_ID, tuple(token_ids), SamplingParams(prompt_logprobs=0), seed=0, lora_name=lora_id)
        loads = () if lora_id is None else (LoRALoad(0, lora_id),)
        blocks = tuple(range(-(-total // self.runners[0].block_size)))
        for index, end in enumerate((*ends, total)):
            item = ScheduledItem(_ID, start, end - start, blocks, end == total, *state_rows(index))
            rows.append(self.logits(StepPlan(0, (item,), (new,) if start == 0 else (), lora_loads=loads)))
            start = end
        self.execute(StepPlan(0, (), finished=(_ID,)))
        return torch.cat(rows)

    def close(self) -> None:
        """Leave all groups."""
        for runner in self.runners:
            _leave(runner)

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _sampler(self) -> int:
        return self._builder.parallel.sampler(0)

    def _rank(self, config: VllmConfig, parallel: ParallelConfig, blocks: int) -> ModelRunner:
        groups, hooks = groups_of(parallel, TorchGroup), self._builder.hooks
        config = replace(config, parallel_config=parallel)
        with use_groups(groups):
            model = build_model(self._model_class, config)
            pooler = pooler_of(model, config)
            bind_attention(model, config, hooks.all("attention_backends"))
            load_model(model, config, self._builder.description, hooks.all("weight_formats"))
            with self._ops.active():
                finish(model)
            slots = adapter_slots(model, config, self._builder.description.alias)
        recorder = None if self._recorder is None else self._recorder()
        width = vocab_size(model, config)
        return ModelRunner(model, config, blocks, _InForce({}), width, groups, slots, pooler, recorder, STATE_ROWS)

    def _connect(self, runner: ModelRunner, rank: int, store: Store) -> None:
        for name, group in connected_groups(replace(self._builder.parallel, rank=rank), runner.groups):
            if isinstance(group, TorchGroup):
                group.connect(dist.PrefixStore(name, store), device="cpu", address="127.0.0.1", timeout=self.patience)

    def together(self, work: Callable[[ModelRunner, int], R]) -> list[R]:
        """What `work` returns on every rank. Raises what the first rank to fail by itself raised, with a note."""
        done: dict[int, R] = {}
        raised: dict[int, BaseException] = {}

        def run(rank: int) -> None:
            try:
                done[rank] = work(self.runners[rank], rank)
            except BaseException as error:
                raised[rank] = error
                _leave(self.runners[rank])  # who waits for this rank fails too, and leaves

        with self._ops.active():
            threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(len(self.runners))]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(2 * self.patience)
        if len(done) < len(threads):
            raise _cause(raised, [rank for rank in range(len(threads)) if rank not in done])
        return [done[rank] for rank in range(len(threads))]


class _InForce(ChosenOps):
    """Leaves the ops as they are: the thread that started the ranks has chosen them."""

    @contextmanager
    def active(self) -> Iterator[None]:
        yield


_PLAIN = {"kernels": "torch", "dtype": "float32", "device": "cpu", "skip_tokenizer_init": True, "progress": False}


def _step(runner: ModelRunner, plan: StepPlan, *, all_logits: bool = False) -> tuple[ForwardBatch | None, Made]:
    batch = runner.prepare(plan)
    return batch, None if batch is None else run_stage(runner, plan, batch, all_logits=all_logits)


def _leave(runner: ModelRunner) -> None:
    for group in (runner.groups.tensor, runner.groups.pipeline):
        if isinstance(group, TorchGroup):
            group.close()


def _cause(raised: dict[int, BaseException], missing: Sequence[int]) -> BaseException:
    """The error to show of those of all ranks: not one that only says that another rank was lost."""

    def is_symptom(error: BaseException) -> bool:
        return isinstance(error, EngineError) and error.error_code in (PEER_LOST, PEER_STALLED)

    own = {rank: error for rank, error in raised.items() if not is_symptom(error)}
    if own:
        rank, error = next(iter(own.items()))
        error.add_note(f"on rank {rank}; ranks that failed by themselves: {sorted(own)}")
        return error
    silent = [rank for rank in missing if rank not in raised]
    who = f"ranks {silent} have not come back" if silent else "each waits for another in a different collective"
    return EngineError(f"the ranks are stuck: {who}", code="RANK_STALLED")
