"""Logits of a whole prompt, through the engine's own batch and paged cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from bestiary.api.sampling import SamplingParams
from bestiary.engine.executor import UniprocExecutor
from bestiary.engine.plan import NewRequest, ScheduledItem, StepPlan

if TYPE_CHECKING:
    from bestiary.serve.llm import LLM

_ID = "bestiary.testing.prompt_logits"


def prompt_logits(
    llm: LLM, token_ids: Sequence[int], chunk: int | None = None, lora_id: str | None = None
) -> torch.Tensor:
    """Logits ``[len(token_ids), vocabulary]`` of every position, computed in chunks of `chunk` tokens; on the host.

    Uses KV-cache blocks and rows of states from the start, so nothing else may be running. `lora_id`: the id of an
    adapter that is in a slot.
    """
    executor = llm.engine.executor
    if not isinstance(executor, UniprocExecutor) or executor.runner is None:
        raise TypeError("prompt_logits needs a live LLM in this process")
    runner = executor.runner
    llm.engine.scheduler.clear_prefix_cache()
    total = len(token_ids)
    blocks = tuple(range(-(-total // runner.block_size)))
    new = NewRequest(_ID, tuple(token_ids), SamplingParams(prompt_logprobs=0), seed=0, lora_name=lora_id)
    rows = []
    for step, start in enumerate(range(0, total, chunk or total)):
        count = min(chunk or total, total - start)
        item = ScheduledItem(_ID, start, count, blocks, start + count == total, *state_rows(step))
        rows.append(runner.logits(StepPlan(0, (item,), (new,) if start == 0 else ())))
    runner.execute(StepPlan(0, (), finished=(_ID,)))
    return torch.cat(rows).cpu()


def state_rows(step: int) -> tuple[int, int]:
    """The rows of layers' states that the pieces of one prompt read and write: two that change places."""
    return 1 - step % 2 if step else -1, step % 2
