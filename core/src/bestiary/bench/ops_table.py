"""The table of `bench ops`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_FEW = 0.002
"""Rows below this share of their step are told together."""


def ops_table(record: Mapping[str, Any]) -> str:
    """A part for each kind of step: its ops by the time they take, and what is beside them."""
    hardware, loads = record["hardware"], record["load_average"]
    lines = [
        f"{record['model']}, {record['engine']['dtype']}, {hardware['name']}, {hardware['threads'] or 1} threads",
        f"{hardware['bytes_per_s'] / 1e9:.1f} GB/s, {hardware['flops'] / 1e9:.0f} GFLOP/s;"
        f" load average {loads['start']} to {loads['end']}",
    ]
    for title, found in record["results"].items():
        lines += ["", *_part(title, found)]
    return "\n".join(lines)


def _part(title: str, found: Mapping[str, Any]) -> list[str]:
    from .table import aligned

    step = found["step_seconds"]
    ordered = sorted(found["ops"], key=lambda row: -float(row["seconds"]))
    shown = [row for row in ordered if row["share"] >= _FEW]
    few = ordered[len(shown) :]
    rows = [["", "calls", "ms", "of the step", "limit ms", "of the limit"], *map(_row, shown)]
    if few:
        rows.append(_beside(f"{len(few)} others", sum(row["seconds"] for row in few), step))
    rows.append(_beside("all of these", found["kernels_seconds"], step))
    if found["program_seconds"] is not None:
        rows.append(_beside("run as one", found["program_seconds"], step))
    rows += [
        _beside("the runner beside: input, drawing, Python", found["runner_seconds"], step),
        _beside("the engine: scheduler, text", found["engine_seconds"], step),
    ]
    head = f"{title}: {step * 1e3:.4g} ms, {found['context']} tokens each, {found['how']}"
    return [head, *aligned(rows)]


def _row(row: Mapping[str, Any]) -> list[str]:
    reached = "" if row["of_limit"] is None else f"{row['of_limit']:.0%}"
    return [
        f"{row['name']} {row['shape']}", str(row["calls"]), f"{row['seconds'] * 1e3:.3f}", f"{row['share']:.1%}",
        f"{row['limit_seconds'] * 1e3:.3f}", reached,
    ]  # fmt: skip


def _beside(title: str, seconds: float, step: float) -> list[str]:
    return [title, "", f"{seconds * 1e3:.3f}", f"{seconds / step:.1%}", "", ""]
