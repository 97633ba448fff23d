"""The run: in each round every contestant does each part once, in turn; medians over rounds."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from bestiary.api.errors import UsageError
from bestiary.bench.record import load_average, new_record
from bestiary.bench.workload import Workload

from .contestants import Contestant, Figures, Library
from .process import running
from .work import PeersWork

Say = Callable[[str], None]
Facts = dict[str, Any]
"""What `machine.py` answers."""
_RATES = ("bytes_per_s", "flops")


def ask_machine(work: PeersWork, model: str | None, options: Mapping[str, Any]) -> Facts:
    """By a process of its own; see there."""
    given = json.dumps({"threads": work.threads, "model": model, "options": dict(options)})
    command = [sys.executable, "-P", "-m", "bestiary.bench.peers.machine"]
    with running("the measurement of the machine", command, work.threads, given) as program:
        found: Facts = json.loads("".join(program.lines()))
    return found


def run_peers(
    model: str, engine: Mapping[str, Any], peers: Sequence[Contestant], work: PeersWork, say: Say
) -> dict[str, Any]:
    """The record of `bench peers`.

    Args:
        engine: options of Bestiary's; None is left out.

    Raises:
        UsageError: a peer is missing, or none is named. EngineError: a contestant failed.
    """
    options = {"device": "cpu", **{name: value for name, value in engine.items() if value is not None}}
    contestants = _checked(options, [Library("bestiary", model, options=options), *peers])
    load = load_average()
    say("loading the model, to see what it needs")
    about = ask_machine(work, model, options)["model"]
    hardware: list[dict[str, Any]] = []
    rounds: dict[str, list[Figures]] = {each.name: [] for each in contestants}
    for number in range(1, work.rounds + 1):
        hardware.append(ask_machine(work, None, {})["hardware"])
        for name, figures in _round(contestants, work, about["vocab_size"], number).items():
            rounds[name].append(figures)
            say(f"round {number}: {name} " + ", ".join(f"{key} {value:.4g}" for key, value in figures.items()))
    rates = {name: median(each[name] for each in hardware) for name in _RATES}
    results = {name: _medians(each) for name, each in rounds.items()}
    limits = _limits(about["cost"], {**hardware[0], **rates}, about["vocab_size"], work)
    return new_record(
        "peers",
        model,
        engine={**options, **{name: about[name] for name in ("architecture", "dtype", "ops")}},
        contestants={each.name: {"version": each.version, "model": each.model} for each in contestants},
        hardware={**hardware[0], **rates, "rounds": [{name: each[name] for name in _RATES} for each in hardware]},
        load_average={"start": load, "end": load_average()},
        workload=asdict(work),
        limits=limits,
        results={name: {**figures, "rounds": rounds[name]} for name, figures in results.items()},
        fractions={name: _over(figures, limits) for name, figures in results.items()},
        ratios={peer.name: _over(results["bestiary"], results[peer.name]) for peer in peers},
    )


def _checked(options: Mapping[str, Any], contestants: list[Contestant]) -> list[Contestant]:
    """All there, on a CPU, and more than one."""
    if options["device"] not in ("cpu", "auto"):
        raise UsageError("peers are compared on a CPU", field="device", value=options["device"], limit="cpu")
    if len(contestants) == 1:
        raise UsageError("no peer is named", fix="give --llama-bin, --transformers or --openvino")
    for each in contestants:
        each.check()
    return contestants


def _round(contestants: Sequence[Contestant], work: PeersWork, vocab_size: int, number: int) -> dict[str, Figures]:
    """Part by part, so that those who are compared run minutes apart at most."""
    found: dict[str, Figures] = {each.name: {} for each in contestants}
    for part in work.parts:
        job = work.job(part, vocab_size, number)
        for each in contestants:
            found[each.name] |= each.run(job)
    return found


def _medians(rounds: Sequence[Figures]) -> Figures:
    """Of the figures that all rounds have."""
    shared = [name for name in rounds[0] if all(name in each for each in rounds)]
    return {name: median(each[name] for each in rounds) for name in shared}


def _limits(cost: dict[str, Any], hardware: dict[str, Any], vocab_size: int, work: PeersWork) -> dict[str, float]:
    """The best rates for the weights as Bestiary holds them, with arithmetic in float32."""
    from bestiary.bench.hardware import Hardware
    from bestiary.bench.limits import Limits, ModelCost

    limits = Limits(ModelCost(**cost), Hardware(**hardware))
    batches = work.batches(Workload(vocab_size, work.seed))
    return {
        **limits.as_dict(),
        "prefill_tok_s": limits.prefill_tok_s(work.prefill_len),
        "decode_tok_s": limits.decode_tok_s(work.input_len, work.output_len),
        **{
            f"output_tok_s_{len(batch)}": limits.output_tok_s([len(ids) for ids in batch], work.batch_output_len)
            for batch in batches
        },
    }


def _over(first: Figures, second: Mapping[str, float]) -> dict[str, float]:
    """Ratios of the figures that both have."""
    return {name: value / second[name] for name, value in first.items() if name in second}
