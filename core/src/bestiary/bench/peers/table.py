"""The record of `bench peers` for people: a row a figure, a column a contestant, then Bestiary's ratio to each peer."""

from __future__ import annotations

from typing import Any

from bestiary.bench.table import aligned, number


def peers_table(record: dict[str, Any]) -> str:
    """Rates are better high, seconds and memory low; ratios are Bestiary's figure over the peer's."""
    work, hardware, loads = record["workload"], record["hardware"], record["load_average"]
    results, ratios = record["results"], record["ratios"]
    rows = [["", *results, "limit", "of the limit", *(f"÷ {name}" for name in ratios)]]
    for title, name, scale in _figures(work):
        if any(name in each for each in results.values()):
            rows.append([title, *_row(record, name, scale)])
    return "\n".join(
        [
            f"{record['model']}, {hardware['name']}, {work['threads']} threads, medians of {work['rounds']} rounds",
            f"{hardware['bytes_per_s'] / 1e9:.1f} GB/s, {hardware['flops'] / 1e9:.0f} GFLOP/s;"
            f" load average {loads['start']} to {loads['end']}",
            "limit: bytes at that rate, or arithmetic in float32, which products in 8 bits exceed",
            *(f"{name} {each['version']}: {each['model']}" for name, each in record["contestants"].items()),
            "",
            *aligned(rows),
        ]
    )


def _figures(work: dict[str, Any]) -> list[tuple[str, str, float]]:
    """Title, name in the record, and what it is divided by."""
    return [
        (f"prompt of {work['prefill_len']}, tok/s", "prefill_tok_s", 1),
        (f"{work['output_len']} tokens at batch 1, tok/s", "decode_tok_s", 1),
        *((f"{count} requests, output tok/s", f"output_tok_s_{count}", 1) for count in work["requests"]),
        ("start to first token, s", "first_token_s", 1),
        ("peak memory, MiB", "peak_bytes_alone", 2**20),
        ("  many requests, MiB", "peak_bytes_together", 2**20),
    ]


def _row(record: dict[str, Any], name: str, scale: float) -> list[str]:
    limit, reached = record["limits"].get(name), record["fractions"]["bestiary"].get(name)
    ratios = [each.get(name) for each in record["ratios"].values()]
    return [
        *(number(None if name not in each else each[name] / scale) for each in record["results"].values()),
        number(limit),
        "" if reached is None else f"{reached:.0%}",
        *("" if each is None else f"{each:.2f}×" for each in ratios),
    ]
