"""The run: the machine first, then row by row, whatever one of them does; one record, and its table."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch

from bestiary.api.errors import UsageError
from bestiary.bench.hardware import measure_hardware
from bestiary.bench.record import load_average, new_record
from bestiary.bench.table import aligned, number

from .rows import ROWS, Figure, Machine


def run_gpu(device: str, only: Sequence[str], budget: float, small: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """The record of `bench gpu`. A row that fails is told with its error, and the others go on.

    Args:
        only: rows by name; none are all. budget: seconds after which no further row is begun.

    Raises:
        UsageError: there is no such device, or no such row.
    """
    unknown = [name for name in only if name not in ROWS]
    if unknown:
        raise UsageError("there is no such row", field="only", value=", ".join(unknown), limit=", ".join(ROWS))
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "torch sees no CUDA device here", field="device", value=device,
            fix="run it where there is one; --device cpu --tiny tries the command itself",
        )  # fmt: skip
    begun, load = time.perf_counter(), load_average()
    say("measuring the machine")
    machine = Machine(device, measure_hardware(device, torch.bfloat16), small)
    figures: list[Figure] = []
    failed: dict[str, str] = {}
    for name, row in ROWS.items():
        if only and name not in only:
            continue
        if time.perf_counter() - begun > budget:
            failed[name] = f"not begun: {budget:g} s were over"
            continue
        say(f"{name}: {(row.__doc__ or '').partition(': ')[2]}")
        try:
            figures += row(machine)
        except Exception as error:  # what one row raises is its own result
            failed[name] = f"{type(error).__name__}: {error}"
            say(f"{name} failed: {failed[name]}")
    return new_record(
        "gpu", "tiny shapes" if small else "published shapes, random weights",
        hardware=asdict(machine.hardware), load_average={"start": load, "end": load_average()},
        seconds=time.perf_counter() - begun, figures=[asdict(each) for each in figures], failed=failed,
    )  # fmt: skip


def gpu_table(record: dict[str, Any]) -> str:
    """A line a figure: its limit, the fraction reached, and what is asked for."""
    hardware = record["hardware"]
    rows = [["", "", "figure", "", "limit", "reached", "asked for", "hoped for"]]
    for each in record["figures"]:
        fraction = "" if each["fraction"] is None else f"{each['fraction']:.0%}"
        rows.append([each["name"], each["what"], number(each["value"]), each["unit"], number(each["limit"]), fraction,
                     *_wanted(each)])  # fmt: skip
    return "\n".join(
        [
            f"{record['model']}, {hardware['name']}: {hardware['bytes_per_s'] / 1e9:.0f} GB/s,"
            f" {hardware['flops'] / 1e12:.1f} TFLOP/s; {record['seconds']:.0f} s",
            "",
            *aligned(rows),
            *(f"{name} has no figure: {reason}" for name, reason in record["failed"].items()),
        ]
    )


def _wanted(figure: dict[str, Any]) -> list[str]:
    wanted = figure["wanted"]
    if wanted is None:
        return ["", ""]
    return [f"{each:.0%}" if figure["limit"] is not None else f"{each:,.0f} {figure['unit']}" for each in wanted]
