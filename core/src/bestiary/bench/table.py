"""A record as a table for people: aligned columns, plain text."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any


def table(record: dict[str, Any]) -> str:
    """The figures of a record, the limit beside them, and the ratio of the first runtime to the second."""
    if record["kind"] == "perplexity":
        return _perplexity_table(record)
    if record["kind"] == "serve":
        return _serve_table(record)
    if record["kind"] == "http":
        return _http_table(record)
    if record["kind"] == "start":
        return _start_table(record)
    if record["kind"] == "ops":
        from .ops_table import ops_table

        return ops_table(record)
    if record["kind"] == "gpu":
        from .gpu.run import gpu_table

        return gpu_table(record)
    if record["kind"] == "peers":
        from .peers.table import peers_table

        return peers_table(record)
    rows = _latency_rows(record) if record["kind"] == "latency" else _throughput_rows(record)
    hardware, loads = record["hardware"], record["load_average"]
    return "\n".join(
        [
            f"{record['model']}, {record['engine']['dtype']}, {hardware['name']}, {hardware['threads'] or 1} threads",
            f"{hardware['bytes_per_s'] / 1e9:.1f} GB/s, {hardware['flops'] / 1e9:.0f} GFLOP/s;"
            f" load average {loads['start']} to {loads['end']}",
            "",
            *aligned(rows),
        ]
    )


def _perplexity_table(record: dict[str, Any]) -> str:
    """One row a format, with its distance from the first."""
    work = record["workload"]
    rows = [["", "perplexity", "nats/token", "more", "weights MiB", "KV bytes/token", "seconds"]]
    for name, each in record["results"].items():
        more = f"{round(each['perplexity_more'], 4) + 0.0:+.2%}" if len(rows) > 1 else ""
        rows.append(
            [name, f"{each['perplexity']:.4f}", f"{each['nats_per_token']:.5f}", more,
             f"{each['weight_bytes'] / 2**20:.1f}", f"{each['kv_bytes_per_token']}", f"{each['seconds']:.1f}"]
        )  # fmt: skip
    return "\n".join(
        [
            f"{record['model']}, {record['engine']['dtype']}",
            f"{work['text']}: {work['scored']} of {work['tokens']} tokens, windows of {work['window']}, "
            f"stride {work['stride']}",
            "",
            *aligned(rows),
        ]
    )


def _http_table(record: dict[str, Any]) -> str:
    """New tokens a second without and with a server between, and what the client alone computed."""
    work, found = record["workload"], record["results"]
    rows = [
        ["", "tokens/s"],
        ["offline", f"{found['offline']:.1f}"],
        ["over HTTP", f"{found['http']:.1f}"],
    ]
    return "\n".join(
        [
            f"{record['model']}, {work['streams']} streams of {work['output_len']} tokens, {work['repeats']} rounds",
            f"lost over HTTP: {found['lost']:.1%}, the client's own work included "
            f"({found['client_cpu_per_1000']:.3f} s for 1,000 tokens)",
            "",
            *aligned(rows),
        ]
    )


def _start_table(record: dict[str, Any]) -> str:
    """When what was there, and how long each phase of the engine took, beside the rest of the server's start."""
    rounds = record["results"]["rounds"]
    parts = [("the server listens", "listening"), ("it is ready", "ready"), ("the first token", "first_token")]
    rows = [["", "median", "least", "most"]]
    for title, name in parts:
        rows.append(_spread(title, [each[name] for each in rounds]))
    for name in rounds[0]["phases"]:
        rows.append(_spread(f"  {name}", [each["phases"][name] for each in rounds]))
    rows.append(_spread("neither torch nor weights", [each["elsewhere"] for each in rounds]))
    loads = record["load_average"]
    return "\n".join(
        [
            f"{record['model']}, {record['hardware']['name']}, {len(rounds)} starts, seconds since the command",
            f"load average {loads['start']} to {loads['end']}",
            "",
            *aligned(rows),
        ]
    )


def _spread(title: str, values: Sequence[float]) -> list[str]:
    return [title, *(f"{value:.2f}" for value in (median(values), min(values), max(values)))]


def _serve_table(record: dict[str, Any]) -> str:
    """What users of a server saw: figures by name, percentiles beside one another."""
    found, work, limits = record["results"]["server"], record["workload"], record["limits"]
    arrivals = work["arrivals"]
    closed = arrivals["loop"] == "closed"
    how = f"{arrivals['concurrency']} at a time" if closed else f"{arrivals['rate']:g} requests a second"
    kept = ", ".join(f"{name} {value:g}" for name, value in limits.items())
    good = [] if found["goodput_s"] is None else [
        f"within {kept}: {found['goodput_s']:.3g} requests/s, {found['within_limits']:.1%} of all"
    ]  # fmt: skip
    rows = [["", "p50", "p90", "p99"]]
    for title, name, scale in (
        ("to the first token, ms", "ttft", 1e3), ("a token after it, ms", "tpot_ms", 1),
        ("between pieces, ms", "itl_ms", 1), ("whole answer, s", "e2e", 1),
    ):  # fmt: skip
        if found[name] is not None:
            rows.append([title, *(number(found[name][part] * scale) for part in ("p50", "p90", "p99"))])
    ended = ", ".join(f"{count} by {name}" for name, count in found["ended_by"].items())
    cost = "" if found["cpu_us_per_token"] is None else f", {found['cpu_us_per_token']:.0f} µs a token"
    return "\n".join(
        [
            f"{record['model']}, {work['endpoint']}, {work['output_len']} tokens an answer, {how}",
            f"{found['completed']} of {found['requests']} answered in {found['seconds']:.2f} s ({ended or 'none'})",
            *(f"{count} failed: {name}" for name, count in found["errors"].items()),
            "",
            f"{found['request_s']:.3g} requests/s, {found['output_tok_s']:.4g} tokens/s by {found['counted_by']}",
            *good,
            "",
            *aligned(rows),
            "",
            f"this generator: {found['cpu_share']:.0%} of a core{cost}; sent {found['late_ms']:.2g} ms late (p99)",
        ]
    )


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(each.rjust(width) for each, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]


def _latency_rows(record: dict[str, Any]) -> list[list[str]]:
    results, limits = record["results"], record["limits"]
    prefill = [each["prefill"] for each in results.values()]
    decode = [each["decode"] for each in results.values()]
    return [
        ["", *results, "limit", "of the limit", "ratio"],
        _row("prefill tok/s", [each["prefill_tok_s"] for each in prefill], limits["prefill_tok_s"]),
        _row("first token ms", [each["ttft"] * 1e3 for each in prefill]),
        _row("decode tok/s", [each["decode_tok_s"] for each in decode], limits["decode_tok_s"]),
        *_percentile_rows("between tokens ms", [each["itl_ms"] for each in decode]),
    ]


def _throughput_rows(record: dict[str, Any]) -> list[list[str]]:
    results = list(record["results"].values())
    limit = record["limits"]["output_tok_s"]
    return [
        ["", *record["results"], "limit", "of the limit", "ratio"],
        _row("output tok/s", [each["output_tok_s"] for each in results], limit),
        _row("total tok/s", [each["total_tok_s"] for each in results]),
        *_percentile_rows("first token s", [each["ttft"] for each in results]),
        *_percentile_rows("between tokens ms", [each["itl_ms"] for each in results]),
    ]


def _row(name: str, values: Sequence[float | None], limit: float | None = None) -> list[str]:
    first = values[0]
    reached = "" if limit is None or first is None else f"{first / limit:.0%}"
    second = values[1] if len(values) > 1 else None
    ratio = "" if not first or not second else f"{first / second:.2f}×"
    return [name, *map(number, values), "" if limit is None else number(limit), reached, ratio]


def _percentile_rows(name: str, values: Sequence[dict[str, float] | None]) -> list[list[str]]:
    return [
        _row(f"{name} {part}", [None if each is None else each[part] for each in values])
        for part in ("p50", "p90", "p99")
    ]


def number(value: float | None) -> str:
    """Three digits, and no fraction from a hundred on; "" of nothing."""
    return "" if value is None else f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
