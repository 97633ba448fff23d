"""Who is measured. Both runtimes answer two questions, and all figures follow from the times they give."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from torch import nn

from bestiary.api.errors import EngineError
from bestiary.api.hooks import StepObserver
from bestiary.api.sampling import SamplingParams
from bestiary.engine.executor import UniprocExecutor
from bestiary.engine.plan import StepPlan
from bestiary.engine.runner import ModelRunner

if TYPE_CHECKING:
    from bestiary.serve.llm import LLM

Times = list[float]
"""When each token of one answer came, in seconds from the moment the work was submitted."""


class Subject(Protocol):
    """A runtime under measurement: greedy, the end-of-text token ignored."""

    name: str

    def run(self, prompts: Sequence[list[int]], output_len: int) -> list[Times]:
        """Answer the prompts with `output_len` tokens each, submitted together; `Times` in the same order."""
        ...


def model_of(llm: LLM) -> nn.Module:
    """The model of an engine in this process."""
    model: nn.Module = runner_of(llm).model
    return model


def runner_of(llm: LLM) -> ModelRunner:
    """The runner of an engine in this process."""
    executor = llm.engine.executor
    if not isinstance(executor, UniprocExecutor) or executor.runner is None:
        raise EngineError("only a model in this process can be measured", value=type(executor).__name__)
    return executor.runner


@contextmanager
def observed(llm: LLM, observer: StepObserver) -> Iterator[None]:
    """While it lasts, the observer is told of every step."""
    engine = llm.engine
    before = engine.observers
    engine.observers = (*before, observer)
    try:
        yield
    finally:
        engine.observers = before


class TokenClock:
    """A step observer that notes when each request drew a token; owned by the subject that attached it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.times: dict[str, list[float]] = {}

    def on_step(self, plan: StepPlan, seconds: float) -> None:
        now = self._clock()
        for item in plan.items:
            if item.samples:
                self.times.setdefault(item.request_id, []).append(now)


class BestiarySubject:
    """`LLM.generate` on token ids, without text."""

    name = "bestiary"

    def __init__(self, llm: LLM, clock: Callable[[], float] = time.perf_counter) -> None:
        self._llm = llm
        self._clock = clock

    def run(self, prompts: Sequence[list[int]], output_len: int) -> list[Times]:
        params = SamplingParams(temperature=0, max_tokens=output_len, ignore_eos=True, detokenize=False)
        observer = TokenClock(self._clock)
        with observed(self._llm, observer):
            start = self._clock()
            outputs = self._llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
        times = [[each - start for each in observer.times[output.request_id]] for output in outputs]
        if any(len(each) != output_len for each in times):
            raise EngineError(f"an answer does not have {output_len} tokens", value=[len(each) for each in times])
        return times


def interleave(
    subjects: Sequence[Subject], prompts: Callable[[int], Sequence[list[int]]], output_len: int, rounds: int
) -> dict[str, list[list[Times]]]:
    """Run every subject once a round, in turn, so that a change of the machine's mood meets all of them alike.

    Args:
        prompts: the work of a round; round 0 warms up, and its times are dropped.

    Returns:
        Subject name → its times, round by round.
    """
    found: dict[str, list[list[Times]]] = {subject.name: [] for subject in subjects}
    for number in range(rounds + 1):
        work = prompts(number)
        for subject in subjects:
            times = subject.run(work, output_len)
            if number:
                found[subject.name].append(times)
    return found
