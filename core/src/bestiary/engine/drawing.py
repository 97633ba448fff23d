"""From what a step's last stage made to the step's result."""

from __future__ import annotations

import torch

from bestiary.api.outputs import TokenLogprobs
from bestiary.nn.ops.registry import ChosenOps

from .batch import ForwardBatch
from .device_draws import on_device
from .device_sampler import sample_there
from .logprobs import prompt_logprobs
from .plan import SampledToken, StepPlan, StepResult
from .pooler import pooled
from .sampler import sample, sample_best
from .stage import Made
from .structured.follower import Grammars
from .vocabulary import BestTokens, sampled_rows


def draw(plan: StepPlan, batch: ForwardBatch, logits: Made, grammars: Grammars | None, ops: ChosenOps) -> StepResult:
    """The tokens after a step's last logits, as `grammars` allow, or the vectors; requests are left as they were."""
    if logits is None:
        return StepResult(plan.step, {})
    if isinstance(logits, list):
        return StepResult(plan.step, {}, pooled=pooled(batch.pooled, logits))
    if isinstance(logits, BestTokens):
        found = sampled_rows(logits, batch.sampled)
        ids = (state.request_id for state, _ in batch.sampled)
        return StepResult(plan.step, dict(zip(ids, sample_best(found.logits, found.ids), strict=True)))
    best = None
    if isinstance(logits, tuple):
        logits, *best = logits
    prompts = _prompt_logprobs(batch, logits)
    states = [state for state, _ in batch.sampled]
    rows = [row for _, row in batch.sampled]
    if len(rows) != logits.shape[0]:
        logits = logits[rows]
    allowed = None if grammars is None else grammars.allowed(states)
    drawn: list[SampledToken] = []
    if states and on_device(logits):
        with ops.active():
            drawn = sample_there(logits, states, allowed, best)
    elif states:
        drawn = sample(logits, states, allowed, best)
    return StepResult(plan.step, dict(zip((state.request_id for state in states), drawn, strict=True)), prompts)


def _prompt_logprobs(batch: ForwardBatch, logits: torch.Tensor) -> dict[str, list[TokenLogprobs]]:
    found = {}
    for state, rows, first in batch.prompt_rows:
        count = state.sampling.prompt_logprobs or 0
        tokens = state.tokens[first : first + len(rows)]
        found[state.request_id] = prompt_logprobs(logits[rows.start : rows.stop], tokens, count)
    return found
