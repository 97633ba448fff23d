"""The progress line of `LLM.generate`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from bestiary.api.outputs import RequestOutput

Report = Callable[[Sequence[RequestOutput]], None]


def _silent(changed: Sequence[RequestOutput]) -> None:
    return


@contextmanager
def generation_progress(requests: Sequence[RequestOutput], *, enabled: bool) -> Iterator[Report]:
    """Show finished requests and tokens per second on standard error while the block runs; only on a terminal."""
    if not enabled or not sys.stderr.isatty():
        yield _silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("generating"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[tokens]} tokens, {task.fields[rate]:.1f}/s"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("generating", total=len(requests), tokens=0, rate=0.0)

        def report(changed: Sequence[RequestOutput]) -> None:
            tokens = sum(len(output.token_ids) for request in requests for output in request.outputs)
            elapsed = progress.tasks[0].elapsed or 1e-9
            done = sum(request.finished for request in requests)
            progress.update(task, completed=done, tokens=tokens, rate=tokens / elapsed)

        yield report
