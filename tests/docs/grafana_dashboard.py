"""Writes docs/grafana/bestiary.json, a Grafana dashboard of the server's metrics: `scripts/reference`.

Help texts come from the table of metrics; `tests/docs/test_grafana.py` holds expressions to names and kinds of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bestiary.serve.openai.metrics import METRICS

DASHBOARD = Path(__file__).resolve().parents[2] / "docs" / "grafana" / "bestiary.json"
WIDTH = 24  # columns of Grafana's grid
CHOSEN = '{instance=~"$instance"}'
SOURCE = {"type": "prometheus", "uid": "${source}"}
QUANTILES = (0.5, 0.9, 0.99)

Target = tuple[str, str]  # an expression and its legend


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One picture. `about`: the metrics whose help texts explain it. `options`: what Grafana's kind of panel takes."""

    title: str
    targets: Sequence[Target]
    about: Sequence[str]
    kind: str = "timeseries"
    unit: str = "short"
    width: int = 8
    height: int = 8
    highest: float | None = None
    stacked: bool = False
    format: str = "time_series"


def metric(name: str, labels: str = CHOSEN) -> str:
    return f"bestiary_{name}{labels}"


def rate(name: str) -> str:
    return f"rate({metric(name)}[$__rate_interval])"


def total(name: str, by: str = "") -> str:
    return f"sum{f' by ({by})' if by else ''} ({rate(name)})"


def quantiles(name: str) -> list[Target]:
    buckets = total(f"{name}_bucket", "le")
    return [(f"histogram_quantile({q}, {buckets})", f"p{q * 100:g}") for q in QUANTILES]


def share(part: str, whole: str) -> str:
    return f"{part} / ({whole} > 0)"


STATE = f"max by (state) ({metric('engine_state')}) == 1"
TTFT, ITL, WHOLE = "time_to_first_token_seconds", "inter_token_seconds", "request_seconds"

ROWS: dict[str, list[Panel]] = {
    "Now": [
        Panel(title="State", kind="stat", width=4, height=4, about=["engine_state"], targets=[(STATE, "{{state}}")]),
        Panel(title="Running", kind="stat", width=4, height=4, about=["requests_running"],
              targets=[(f"sum({metric('requests_running')})", "")]),
        Panel(title="Waiting", kind="stat", width=4, height=4, about=["requests_waiting"],
              targets=[(f"sum({metric('requests_waiting')})", "")]),
        Panel(title="Tokens per second", kind="stat", width=4, height=4, about=["generated_tokens_total"],
              targets=[(total("generated_tokens_total"), "")]),
        Panel(title="First token, p90", kind="stat", width=4, height=4, unit="s", about=[TTFT],
              targets=[quantiles(TTFT)[1]]),
        Panel(title="KV cache", kind="gauge", width=4, height=4, unit="percentunit", highest=1,
              about=["kv_cache_blocks"],
              targets=[(share(f"sum({metric('kv_cache_blocks_used')})", f"sum({metric('kv_cache_blocks')})"), "")]),
    ],
    "Throughput": [
        Panel(title="Tokens per second", about=["generated_tokens_total", "prompt_tokens_total"],
              targets=[(total("generated_tokens_total"), "generated"), (total("prompt_tokens_total"), "prompt")]),
        Panel(title="Requests", stacked=True, about=["requests_running", "requests_waiting"],
              targets=[(f"sum({metric('requests_running')})", "running"),
                       (f"sum({metric('requests_waiting')})", "waiting")]),
        Panel(title="Requests per second, by outcome", unit="reqps", stacked=True, about=["requests_total"],
              targets=[(total("requests_total", "outcome"), "{{outcome}}")]),
    ],
    "Latency": [
        Panel(title="Time to first token", unit="s", about=[TTFT], targets=quantiles(TTFT)),
        Panel(title="Between tokens", unit="s", about=[ITL], targets=quantiles(ITL)),
        Panel(title="Whole request", unit="s", about=[WHOLE], targets=quantiles(WHOLE)),
        Panel(title="Time to first token, all of it", kind="heatmap", unit="s", width=12, format="heatmap",
              about=[TTFT],
              targets=[(f"sum by (le) (increase({metric(f'{TTFT}_bucket')}[$__rate_interval]))", "{{le}}")]),
        Panel(title="Whole request, p90 by endpoint", unit="s", width=12, about=[WHOLE],
              targets=[(f"histogram_quantile(0.9, {total(f'{WHOLE}_bucket', 'le, endpoint')})", "{{endpoint}}")]),
    ],
    "Cache": [
        Panel(title="KV cache in use", unit="percentunit", highest=1, about=["kv_cache_blocks_used", "kv_cache_blocks"],
              targets=[(share(metric("kv_cache_blocks_used"), metric("kv_cache_blocks")), "{{instance}}")]),
        Panel(title="Prefix cache hits", unit="percentunit", highest=1,
              about=["prefix_cache_hits_total", "prefix_cache_queries_total"],
              targets=[(share(total("prefix_cache_hits_total"), total("prefix_cache_queries_total")), "hits")]),
        Panel(title="Preemptions per second", about=["preemptions_total"],
              targets=[(total("preemptions_total"), "preemptions")]),
    ],
    "Health": [
        Panel(title="Step, on average", unit="s", about=["step_seconds"],
              targets=[(share(total("step_seconds_sum"), total("step_seconds_count")), "step")]),
        Panel(title="Turned away and failed, per minute", about=["requests_shed_total", "numerical_errors_total"],
              targets=[(f"60 * {total('requests_shed_total')}", "queue full"),
                       (f"60 * {total('numerical_errors_total')}", "no number")]),
        Panel(title="Restarts of the engine, in an hour", about=["engine_restarts_total"],
              targets=[(f"sum(increase({metric('engine_restarts_total')}[1h]))", "restarts")]),
        Panel(title="State", kind="state-timeline", width=24, height=5, about=["engine_state"],
              targets=[(f"max by (state) ({metric('engine_state')})", "{{state}}")]),
    ],
}  # fmt: skip


def dashboard() -> str:
    """The file's text."""
    return json.dumps(
        {
            "uid": "bestiary", "title": "Bestiary", "tags": ["bestiary"], "schemaVersion": 39, "editable": True,
            "description": "A Bestiary server, from its /metrics. Written by scripts/reference.",
            "time": {"from": "now-1h", "to": "now"}, "refresh": "10s", "timezone": "browser",
            "templating": {"list": [_source(), _instance()]},
            "panels": list(_panels()),
        },
        indent=1,
    ) + "\n"  # fmt: skip


def _source() -> dict[str, Any]:
    return {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}


def _instance() -> dict[str, Any]:
    query = f"label_values({metric('requests_running', '')}, instance)"
    return {
        "name": "instance", "label": "Server", "type": "query", "datasource": SOURCE, "refresh": 2,
        "query": {"query": query, "refId": "instances"}, "includeAll": True, "multi": True,
        "current": {"text": "All", "value": "$__all"},
    }  # fmt: skip


def _panels() -> Iterator[dict[str, Any]]:
    number, top = 0, 0
    for title, panels in ROWS.items():
        number += 1
        yield {
            "id": number,
            "type": "row",
            "title": title,
            "collapsed": False,
            "panels": [],
            "gridPos": _at(0, top, 24, 1),
        }
        top += 1
        left = tallest = 0
        for panel in panels:
            if left + panel.width > WIDTH:
                left, top, tallest = 0, top + tallest, 0
            number += 1
            yield _panel(panel) | {"id": number, "gridPos": _at(left, top, panel.width, panel.height)}
            left, tallest = left + panel.width, max(tallest, panel.height)
        top += tallest


def _at(x: int, y: int, w: int, h: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": w, "h": h}


def _panel(panel: Panel) -> dict[str, Any]:
    helps = {row.name.removeprefix("bestiary_"): row.help for row in METRICS}
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0} | (
        {} if panel.highest is None else {"max": panel.highest}
    )
    if panel.kind == "timeseries":
        stacking = {"mode": "normal" if panel.stacked else "none"}
        defaults["custom"] = {"fillOpacity": 25 if panel.stacked else 8, "lineWidth": 1, "stacking": stacking}
    return {
        "type": panel.kind, "title": panel.title, "datasource": SOURCE,
        "description": " ".join(helps[name] for name in panel.about),
        "targets": [
            {"refId": chr(ord("A") + index), "datasource": SOURCE, "expr": expression, "legendFormat": legend,
             "format": panel.format}
            for index, (expression, legend) in enumerate(panel.targets)
        ],
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": _options(panel),
    }  # fmt: skip


def _options(panel: Panel) -> dict[str, Any]:
    last = {"calcs": ["lastNotNull"], "fields": "", "values": False}
    match panel.kind:
        case "stat":
            named = panel.title == "State"
            return {
                "reduceOptions": last,
                "graphMode": "none" if named else "area",
                "textMode": "name" if named else "value",
            }
        case "gauge":
            return {"reduceOptions": last}
        case "heatmap":
            return {"calculate": False, "yAxis": {"unit": panel.unit}, "color": {"scheme": "Greens"}}
        case "state-timeline":
            return {"mergeValues": True, "showValue": "never"}
        case _:
            return {
                "legend": {"displayMode": "list", "placement": "bottom"},
                "tooltip": {"mode": "multi", "sort": "desc"},
            }


if __name__ == "__main__":
    DASHBOARD.write_text(dashboard(), encoding="utf-8")
