"""`bench ops`: where the time of a decode step, and of a prompt, goes: op by op, beside what each could take at least.

A recorded step is taken apart by whoever recorded it, kernel by kernel; a step that runs op by op is timed while it
runs. How long the step lasts is measured apart from both, with no clock in its way.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from bestiary.api.sampling import SamplingParams
from bestiary.engine.plan import StepPlan
from bestiary.nn.graphs import KernelTime, Profiled
from bestiary.nn.ops.registry import turn

from .hardware import Hardware
from .op_timer import OpTimer, together
from .subject import observed, runner_of
from .workload import Workload

if TYPE_CHECKING:
    from bestiary.serve.llm import LLM

OP_BY_OP = "op by op"


@dataclass(frozen=True, slots=True)
class OpsWork:
    """Decode steps of so many rows each, `output_len` tokens after prompts of `input_len`; prompts of `prefill_len`.

    Attributes:
        seconds: for taking a recorded step apart. text: whether answers become text while they come.
    """

    batch: tuple[int, ...] = (1, 16, 32)
    input_len: int = 128
    output_len: int = 16
    prefill_len: int = 512
    repeats: int = 3
    seconds: float = 1.0
    text: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Breakdown:
    """One kind of step. Seconds; medians.

    Attributes:
        rows, tokens: of the step; context: of each row in its last step.
        how: "op by op", or "recorded".
        step: from one step to the next; of a prompt, to its first token.
        program: a recorded step as it is replayed, without stops. ops: what it consists of.
    """

    rows: int
    tokens: int
    context: int
    how: str
    step: float
    program: float | None
    ops: list[KernelTime]

    def as_dict(self, hardware: Hardware) -> dict[str, Any]:
        """kernels: the sum over ops; between: what the whole takes more, or less; outside: the rest of the step."""
        kernels = sum(each.seconds for each in self.ops)
        inside = kernels if self.program is None else self.program
        return {
            "rows": self.rows, "tokens": self.tokens, "context": self.context, "how": self.how,
            "step_seconds": self.step, "kernels_seconds": kernels, "program_seconds": self.program,
            "between_seconds": inside - kernels, "outside_seconds": self.step - inside,
            "ops": [_beside_limit(each, self.step, hardware) for each in self.ops],
        }  # fmt: skip


def _beside_limit(row: KernelTime, step: float, hardware: Hardware) -> dict[str, Any]:
    limit = max(row.bytes / hardware.bytes_per_s, row.operations / hardware.flops)
    reached = limit / row.seconds if row.seconds else None
    return {**asdict(row), "share": row.seconds / step, "limit_seconds": limit, "of_limit": reached}


class _Steps:
    """A step observer: what ended when, and, with a timer, what it consisted of."""

    def __init__(self, timer: OpTimer | None) -> None:
        self._timer = timer
        self.ended: list[tuple[int, int, float]] = []
        self.ops: list[list[KernelTime]] = []

    def on_step(self, plan: StepPlan, seconds: float) -> None:
        tokens = sum(item[2] for item in plan.items)
        self.ended.append((len(plan.items), tokens, time.perf_counter()))
        if self._timer is not None:
            self.ops.append(self._timer.take())


class OpsBench:
    """Measures one engine."""

    def __init__(self, llm: LLM, workload: Workload, work: OpsWork) -> None:
        self._llm, self._workload, self._work = llm, workload, work
        self._runner = runner_of(llm)
        self._timer = OpTimer(llm.vllm_config.device_config.device)

    def decode(self, rows: int) -> Breakdown:
        """Steps in which every one of `rows` requests has one token."""
        work = self._work
        prompts = [self._workload.prompt(work.input_len, number) for number in range(rows)]
        self._run(prompts, work.output_len)
        rounds = [self._run(prompts, work.output_len)[1] for _ in range(work.repeats)]
        taken = [
            now - then
            for steps in rounds
            for (_, _, then), (_, tokens, now) in pairwise(steps.ended)
            if tokens == rows
        ]  # fmt: skip
        found = self._recorded(rows)
        if found is None:
            with self._timer.watching(self._runner):
                timed = self._run(prompts, work.output_len, self._timer)[1]
            samples = [ops for ops, (_, tokens, _) in zip(timed.ops, timed.ended, strict=True) if tokens == rows]
            program, ops, how = None, _medians(samples), OP_BY_OP
        else:
            (program, ops), how = found, "recorded"
        context = work.input_len + work.output_len - 1
        return Breakdown(rows=rows, tokens=rows, context=context, how=how, step=median(taken), program=program, ops=ops)

    def prefill(self) -> Breakdown:
        """A prompt to its first token, in however many steps."""
        length, repeats = self._work.prefill_len, self._work.repeats
        prompts = [[self._workload.prompt(length, number)] for number in range(repeats + 1)]
        taken = [self._run(each, 1) for each in prompts][1:]
        with self._timer.watching(self._runner):
            timed = [self._run(each, 1, self._timer)[1] for each in prompts][1:]
        samples = [_summed([op for ops in steps.ops for op in ops]) for steps in timed]
        lasted = median(steps.ended[-1][2] - start for start, steps in taken)
        return Breakdown(
            rows=1, tokens=length, context=length, how=OP_BY_OP, step=lasted, program=None, ops=_medians(samples)
        )

    def _run(self, prompts: Sequence[list[int]], length: int, timer: OpTimer | None = None) -> tuple[float, _Steps]:
        """Answer `prompts`; when that began, and its steps."""
        params = SamplingParams(temperature=0, max_tokens=length, ignore_eos=True, detokenize=self._work.text)
        steps = _Steps(timer)
        with observed(self._llm, steps):
            start = time.perf_counter()
            self._llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
        return start, steps

    def _recorded(self, rows: int) -> tuple[float, list[KernelTime]] | None:
        """The last step of so many rows without stops, and taken apart; None where none is recorded that can be."""
        graphs = self._runner.graphs
        step = None if graphs is None else graphs.recorded(rows)
        if not isinstance(step, Profiled):
            return None
        with turn(), torch.inference_mode():
            whole = _median_seconds(step, self._work.seconds)
            return whole, list(step.profile(self._work.seconds))


def _median_seconds(call: Callable[[], object], least: float) -> float:
    """Of calls that last for `least` seconds together, five at the least, after one that does not count."""
    call()
    times: list[float] = []
    while len(times) < 5 or sum(times) < least:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return median(times)


def _summed(ops: Sequence[KernelTime]) -> list[KernelTime]:
    """One row for each op and shape."""
    found: dict[tuple[str, str], list[KernelTime]] = {}
    for each in ops:
        found.setdefault((each.name, each.shape), []).append(each)
    return [together(rows) for rows in found.values()]


def _medians(samples: Sequence[Sequence[KernelTime]]) -> list[KernelTime]:
    """The last sample, each row with its median time over all."""
    times: dict[tuple[str, str], list[float]] = {}
    for sample in samples:
        for each in sample:
            times.setdefault((each.name, each.shape), []).append(each.seconds)
    return [replace(each, seconds=median(times[each.name, each.shape])) for each in samples[-1]]
