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
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from bestiary.api.errors import UsageError
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
        executed: of it, from when its plan was made to when its tokens were noted.
        program: a recorded step as it is replayed, without stops. ops: what it consists of.
    """

    rows: int
    tokens: int
    context: int
    how: str
    step: float
    executed: float
    program: float | None
    ops: list[KernelTime]

    def as_dict(self, hardware: Hardware) -> dict[str, Any]:
        """kernels: the sum over ops; between: what the whole takes more, or less; runner: what else its execution
        takes, such as input and drawing; engine: the rest of the step, such as scheduling and text."""
        kernels = sum(each.seconds for each in self.ops)
        inside = kernels if self.program is None else self.program
        return {
            "rows": self.rows, "tokens": self.tokens, "context": self.context, "how": self.how,
            "step_seconds": self.step, "kernels_seconds": kernels, "program_seconds": self.program,
            "between_seconds": inside - kernels, "runner_seconds": self.executed - inside,
            "engine_seconds": self.step - self.executed,
            "ops": [_beside_limit(each, self.step, hardware) for each in self.ops],
        }  # fmt: skip


def _beside_limit(row: KernelTime, step: float, hardware: Hardware) -> dict[str, Any]:
    limit = max(row.bytes / hardware.bytes_per_s, row.operations / hardware.flops)
    reached = limit / row.seconds if row.seconds else None
    return {**asdict(row), "share": row.seconds / step, "limit_seconds": limit, "of_limit": reached}


class _Ended(NamedTuple):
    """A step that is over. rows: of a step that only decodes, else 0. seconds: of its execution. ops: timed in it."""

    rows: int
    seconds: float
    when: float
    ops: list[KernelTime]


class _Steps:
    """A step observer."""

    def __init__(self, timer: OpTimer | None) -> None:
        self._timer = timer
        self.ended: list[_Ended] = []

    def on_step(self, plan: StepPlan, seconds: float) -> None:
        rows = len(plan.items) if all(item[2] == 1 for item in plan.items) else 0
        ops = [] if self._timer is None else self._timer.take()
        self.ended.append(_Ended(rows, seconds, time.perf_counter(), ops))


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
        pairs = [(one, two) for steps in rounds for one, two in pairwise(steps) if two.rows == rows]
        if not pairs:
            raise UsageError(
                f"answers of {work.output_len} tokens end before {rows} requests decode together",
                field="output_len", value=work.output_len, fix="a greater --output-len, or a smaller --input-len",
            )  # fmt: skip
        found = self._recorded(rows)
        if found is None:
            with self._timer.watching(self._runner):
                timed = self._run(prompts, work.output_len, self._timer)[1]
            samples = [step.ops for step in timed if step.rows == rows]
            program, ops, how = None, _medians(samples), OP_BY_OP
        else:
            (program, ops), how = found, "recorded"
        context = work.input_len + work.output_len - 1
        return Breakdown(
            rows=rows, tokens=rows, context=context, how=how, program=program, ops=ops,
            step=median(two.when - one.when for one, two in pairs), executed=median(two.seconds for _, two in pairs),
        )  # fmt: skip

    def prefill(self) -> Breakdown:
        """A prompt to its first token, in however many steps."""
        length, repeats = self._work.prefill_len, self._work.repeats
        prompts = [[self._workload.prompt(length, number)] for number in range(repeats + 1)]
        taken = [self._run(each, 1) for each in prompts][1:]
        with self._timer.watching(self._runner):
            timed = [self._run(each, 1, self._timer)[1] for each in prompts][1:]
        samples = [_summed([op for step in steps for op in step.ops]) for steps in timed]
        return Breakdown(
            rows=1, tokens=length, context=length, how=OP_BY_OP, program=None, ops=_medians(samples),
            step=median(steps[-1].when - start for start, steps in taken),
            executed=median(sum(step.seconds for step in steps) for _, steps in taken),
        )  # fmt: skip

    def _run(
        self, prompts: Sequence[list[int]], length: int, timer: OpTimer | None = None
    ) -> tuple[float, list[_Ended]]:
        """Answer `prompts`; when that began, and its steps."""
        params = SamplingParams(temperature=0, max_tokens=length, ignore_eos=True, detokenize=self._work.text)
        steps = _Steps(timer)
        with observed(self._llm, steps):
            start = time.perf_counter()
            self._llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
        return start, steps.ended

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
