"""The progress line of `LLM.generate` and of `LLM.encode`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from bestiary.api.outputs import PoolingRequestOutput, RequestOutput

from .outputs import AnyOutput

Report = Callable[[Sequence[AnyOutput]], None]


def _silent(changed: Sequence[AnyOutput]) -> None:
    return


@contextmanager
def generation_progress(requests: Sequence[AnyOutput], *, enabled: bool) -> Iterator[Report]:
    """Show finished requests and tokens per second on standard error while the block runs; only on a terminal."""
    if not enabled or not sys.stderr.isatty():
        yield _silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[tokens]} tokens, {task.fields[rate]:.1f}/s"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        pooled = any(isinstance(request, PoolingRequestOutput) for request in requests)
        task = progress.add_task("embedding" if pooled else "generating", total=len(requests), tokens=0, rate=0.0)

        def report(changed: Sequence[AnyOutput]) -> None:
            tokens = sum(map(_tokens, requests))
            elapsed = progress.tasks[0].elapsed or 1e-9
            done = sum(request.finished for request in requests)
            progress.update(task, completed=done, tokens=tokens, rate=tokens / elapsed)

        yield report


def _tokens(request: AnyOutput) -> int:
    """Tokens drawn so far, or read and made a vector of."""
    if isinstance(request, RequestOutput):
        return sum(len(output.token_ids) for output in request.outputs)
    return len(request.prompt_token_ids) if request.finished else 0
