"""What is counted and timed, for Prometheus and for `/server/stats`; one table says what there is."""

from __future__ import annotations

import math
import time
from array import array
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from bestiary.api.outputs import RequestOutput

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from bestiary.serve.async_llm import AsyncLLM

    from .service import Call

STATES = ("starting", "ready", "stalled", "restarting", "failed", "draining", "closed")
_WINDOW_S, _WINDOW_COUNT = 300.0, 8192
_QUANTILES = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))


class Row(NamedTuple):
    """A metric. `stat` is the field of `EngineStats` that a counter or gauge of the engine shows."""

    name: str
    kind: Literal["counter", "gauge", "histogram", "summary"]
    help: str
    unit: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    stat: str | None = None


_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)

METRICS: Sequence[Row] = (
    Row("bestiary_requests_total", "counter", "Requests that ended.", "", ("endpoint", "outcome")),
    Row("bestiary_request_seconds", "histogram", "From a request's arrival to its end.", "seconds", ("endpoint",),
        _SECONDS),
    Row("bestiary_time_to_first_token_seconds", "histogram", "From acceptance to the first token.", "seconds", (),
        _SECONDS),
    Row("bestiary_inter_token_seconds", "histogram", "Between tokens of one answer.", "seconds", (), _SHORT),
    Row("bestiary_prompt_tokens_total", "counter", "Prompt tokens of requests that were accepted.", ""),
    Row("bestiary_generated_tokens_total", "counter", "Tokens generated.", ""),
    Row("bestiary_requests_shed_total", "counter", "Requests refused because the queue was full.", ""),
    Row("bestiary_requests_running", "gauge", "Sequences being computed.", "", stat="running"),
    Row("bestiary_requests_waiting", "gauge", "Sequences in the queue.", "", stat="waiting"),
    Row("bestiary_kv_cache_blocks_used", "gauge", "Blocks of the KV cache in use.", "", stat="used_blocks"),
    Row("bestiary_kv_cache_blocks", "gauge", "Blocks of the KV cache.", "", stat="blocks"),
    Row("bestiary_prefix_cache_queries_total", "counter", "Prompt tokens looked up in the prefix cache.", "",
        stat="prefix_queries"),
    Row("bestiary_prefix_cache_hits_total", "counter", "Prompt tokens found there.", "", stat="prefix_hits"),
    Row("bestiary_preemptions_total", "counter", "Sequences that lost their blocks for a while.", "",
        stat="preemptions"),
    Row("bestiary_engine_restarts_total", "counter", "Times the engine process was started again.", ""),
    Row("bestiary_step_seconds", "summary", "Steps of the engine, and the time they took together.", "seconds"),
    Row("bestiary_numerical_errors_total", "counter", "Tokens that could not be drawn, for there was no number.", "",
        stat="numerical_errors"),
    Row("bestiary_engine_state", "gauge", "1 for the state the engine is in.", "", ("state",)),
)  # fmt: skip


class Metrics:
    """Owns the registry, and the latest latencies; everything is called from the event loop."""

    def __init__(self, llm: AsyncLLM) -> None:
        from prometheus_client import CollectorRegistry, Counter, Histogram

        self.registry = CollectorRegistry(auto_describe=False)
        self._llm = llm
        self._own: dict[str, Any] = {}
        for row in METRICS:
            if row.kind == "histogram":
                self._own[row.name] = Histogram(
                    row.name, row.help, row.labels, registry=self.registry, buckets=row.buckets
                )
            elif row.kind == "counter" and row.stat is None and row.name != "bestiary_engine_restarts_total":
                self._own[row.name] = Counter(row.name, row.help, row.labels, registry=self.registry)
        self.registry.register(self)
        self.latency = {name: Window() for name in ("ttft", "itl", "e2e")}
        self.outcomes = dict.fromkeys(("finished", "failed", "aborted", "shed", "refused"), 0)
        self.tokens = {"prompt": 0, "generated": 0}

    def collect(self) -> Iterator[Metric]:
        """What the engine last said, when Prometheus asks."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, SummaryMetricFamily

        llm, stats = self._llm, self._llm.stats()
        for row in METRICS:
            if row.name == "bestiary_engine_state":
                family = GaugeMetricFamily(row.name, row.help, labels=row.labels)
                for name in STATES:
                    family.add_metric([name], float(name == llm.state))
                yield family
            elif row.name == "bestiary_engine_restarts_total":
                yield CounterMetricFamily(row.name, row.help, value=llm.restarts)
            elif row.kind == "summary":
                yield SummaryMetricFamily(row.name, row.help, count_value=stats.steps, sum_value=stats.step_seconds)
            elif row.stat is not None:
                kind = CounterMetricFamily if row.kind == "counter" else GaugeMetricFamily
                yield kind(row.name, row.help, value=getattr(stats, row.stat))

    def describe(self) -> Sequence[Metric]:
        return ()

    def end(self, call: Call, outcome: str) -> None:
        """A request ended: "finished", "refused", "shed", "failed" or "aborted"."""
        seconds = time.monotonic() - call.started
        self._own["bestiary_requests_total"].labels(call.endpoint.path, outcome).inc()
        self._own["bestiary_request_seconds"].labels(call.endpoint.path).observe(seconds)
        if call.endpoint.loads:
            self.outcomes[outcome] += 1
        if outcome == "shed":
            self._own["bestiary_requests_shed_total"].inc()

    def accepted(self, prompt_tokens: int) -> Clock:
        """A generation was accepted; the clock is to see its output grow."""
        self.prompt(prompt_tokens)
        return Clock(self)

    def prompt(self, tokens: int) -> None:
        """A prompt was accepted."""
        self._own["bestiary_prompt_tokens_total"].inc(tokens)
        self.tokens["prompt"] += tokens

    def first_token(self, seconds: float) -> None:
        self._own["bestiary_time_to_first_token_seconds"].observe(seconds)
        self.latency["ttft"].add(seconds)

    def later_tokens(self, count: int, seconds: float) -> None:
        self._own["bestiary_inter_token_seconds"].observe(seconds / count)
        self.latency["itl"].add(seconds / count)

    def generated(self, count: int) -> None:
        self._own["bestiary_generated_tokens_total"].inc(count)
        self.tokens["generated"] += count


class Clock:
    """Times one generation by looking at its output after each change."""

    __slots__ = ("_first", "_last", "_metrics", "_seen", "_started")

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._started = self._last = time.monotonic()
        self._seen = 0
        self._first = True

    def see(self, output: RequestOutput) -> None:
        count = 0
        for answer in output.outputs:
            count += len(answer.token_ids)
        if count > self._seen:
            now = time.monotonic()
            if self._first:
                self._first = False
                self._metrics.first_token(now - self._started)
            else:
                steps = max(1, (count - self._seen) // len(output.outputs))
                self._metrics.later_tokens(steps, now - self._last)
            self._metrics.generated(count - self._seen)
            self._seen, self._last = count, now
        if output.finished:
            self._metrics.latency["e2e"].add(time.monotonic() - self._started)


class Window:
    """The values of the last five minutes, as many as fit. It takes no more memory when it is full than when it is
    new."""

    def __init__(self) -> None:
        self._times, self._values = array("d", bytes(8 * _WINDOW_COUNT)), array("d", bytes(8 * _WINDOW_COUNT))
        self._added = 0

    def add(self, value: float) -> None:
        place = self._added % _WINDOW_COUNT
        self._times[place], self._values[place] = time.monotonic(), value
        self._added += 1

    def quantiles(self) -> dict[str, float | None]:
        """p50, p90 and p99; None where nothing happened."""
        oldest = time.monotonic() - _WINDOW_S
        kept = zip(self._times[: self._added], self._values[: self._added], strict=True)
        ordered = sorted(value for at, value in kept if at >= oldest)
        last = len(ordered) - 1
        return {name: ordered[math.ceil(share * last)] if ordered else None for name, share in _QUANTILES}


async def metrics(call: Call) -> Any:
    """`GET /metrics`, in Prometheus' text format."""
    from prometheus_client import generate_latest
    from starlette.responses import Response

    return Response(generate_latest(call.service.metrics.registry), media_type="text/plain; version=0.0.4")
