"""What `inspect` says of every rank's memory: as data, and as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .output import Table, pairs, sentence, size

if TYPE_CHECKING:
    from bestiary.engine.memory_plan import MemoryPlan, RankPlan


def plan_document(plan: MemoryPlan, *, given: bool) -> dict[str, Any]:
    """Bytes and counts. `given`: the memory of a rank was said, not measured."""
    from bestiary.engine.footprint import ACTIVATIONS

    parallel, narrow = plan.parallel, plan.bottleneck
    return {
        "layout": {
            "tensor": parallel.tensor_parallel_size,
            "pipeline": parallel.pipeline_parallel_size,
            "data": parallel.data_parallel_size,
            "expert": parallel.tensor_parallel_size if parallel.enable_expert_parallel else 1,
            "ranks": parallel.world_size_across_dp,
            "machines": parallel.nnodes,
        },
        "memory_per_rank": narrow.memory,
        "memory_given": given,
        "weight_bytes": sum(part.footprint.weight_bytes * len(part.ranks) for part in plan.parts),
        "ranks": [_rank(part) for part in plan.parts],
        "bottleneck": narrow.ranks[0],
        "blocks": plan.blocks,
        "state_rows": plan.state_rows,
        "sequences_of_max_model_len": plan.sequences(plan.blocks),
        "fitting_blocks": narrow.fitting_blocks,
        "fitting_sequences_of_max_model_len": plan.sequences(narrow.fitting_blocks),
        "activations_formula": ACTIVATIONS,
    }


def problem_of(plan: MemoryPlan) -> str | None:
    """Why the engine would not start, in a sentence; None where nothing is known to stop it."""
    for part in plan.parts:
        if part.footprint.held > part.memory:
            who = "" if len(plan.parts) == 1 else f" of {_named(list(part.ranks))}"
            return f"the weights{who} need {size(part.footprint.held)}; {size(part.memory)} are free"
    refused = [part.refusal for part in plan.parts if part.refusal is not None]
    return sentence(refused[0]) if refused else None


def plan_tables(plan: dict[str, Any]) -> list[Table]:
    """Ranks that hold the same amounts share a row."""
    experts = any(each["experts"] for each in plan["ranks"])
    states = any(each["state_bytes_per_row"] for each in plan["ranks"])
    rows: dict[tuple[str, ...], list[int]] = {}
    for each in plan["ranks"]:
        layers = each["layers"] and f"{each['layers'][0]} to {each['layers'][1] - 1}"
        cells = (
            str(each["stage"]), layers or "-", *([f"{each['experts']:,}"] if experts else []),
            size(each["weight_bytes"]), size(each["buffers"]),
            size(each["adapters"]), size(each["activations_estimate"]), size(each["kv_cache_bytes_per_token"]),
            *([size(each["state_bytes_per_row"])] if states else []),
            size(each["left"]) if each["left"] >= 0 else f"{size(-each['left'])} too few",
            "-" if each["fitting_blocks"] is None else f"{each['fitting_blocks']:,}",
        )  # fmt: skip
        rows.setdefault(cells, []).extend(each["ranks"])
    origin = "given" if plan["memory_given"] else "free now"
    columns = ("rank", "stage", "layers", *(["experts"] if experts else []), "weights", "buffers", "adapters",
               "activations (estimate)", "cache a token", *(["state a row"] if states else []), "left for the cache",
               "blocks that fit")  # fmt: skip
    return [
        Table("memory by rank", columns, [(_runs(ranks), *cells) for cells, ranks in rows.items()]),
        pairs("plan", [
            ("layout", _layout(plan["layout"])), ("weights of all ranks", size(plan["weight_bytes"])),
            ("memory of a rank", f"{size(plan['memory_per_rank'])} ({origin})"),
            ("least room", f"rank {plan['bottleneck']}"),
            ("sequences of max model len that fit", plan["fitting_sequences_of_max_model_len"]),
            ("activations (estimate)", plan["activations_formula"]),
        ]),
    ]  # fmt: skip


def _rank(part: RankPlan) -> dict[str, Any]:
    found = part.footprint
    return {
        "ranks": list(part.ranks),
        "stage": part.stage,
        "place": part.place,
        "layers": None if found.layers is None else list(found.layers),
        "parameters": found.parameters,
        "weight_bytes": found.weight_bytes,
        "weight_bytes_by_dtype": found.weights,
        "repacked": found.repacked,
        "buffers": found.buffers,
        "adapters": found.adapters,
        "experts": found.experts,
        "expert_bytes": found.expert_bytes,
        "activations_estimate": found.activations,
        "kv_cache_bytes_per_token": found.kv_bytes_per_token,
        "kv_cache_bytes_per_block": part.block_bytes,
        "state_bytes_per_row": found.state_bytes_per_row,
        "state_rows": part.state_rows,
        "left": part.left,
        "fitting_blocks": part.fitting_blocks,
        "blocks": part.blocks,
        "problem": None if part.refusal is None else sentence(part.refusal),
    }


def _layout(layout: dict[str, int]) -> str:
    kinds = [f"{layout[kind]} {kind}-parallel" for kind in ("tensor", "pipeline", "data") if layout[kind] > 1]
    experts = ", experts whole" if layout["expert"] > 1 else ""
    return f"{layout['ranks']} ranks: {' x '.join(kinds)}{experts}" if kinds else "one process"


def _named(ranks: list[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {_runs(ranks)}"


def _runs(numbers: list[int]) -> str:
    """``[0, 1, 2, 5]`` → ``"0-2, 5"``."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
