"""What a run is told of the machine and of the model, by a process of its own: the one that starts contestants stays
small and idle.

`python -m bestiary.bench.peers.machine` reads ``{"threads": …, "model": …, "options": {…}}`` from stdin; with no model,
the machine is measured.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from typing import Any


def facts(job: dict[str, Any]) -> dict[str, Any]:
    """hardware: rates of the CPU; or model: what limits are reckoned from, and what a record says of an engine."""
    import torch

    from bestiary.bench.hardware import measure_hardware

    torch.set_num_threads(job["threads"])
    if job["model"] is None:
        return {"hardware": asdict(measure_hardware("cpu", torch.float32))}
    return {"model": _model(job["model"], job["options"])}


def _model(model: str, options: dict[str, Any]) -> dict[str, Any]:
    from bestiary.bench.limits import model_cost
    from bestiary.bench.subject import model_of
    from bestiary.serve.llm import LLM

    with LLM(model, skip_tokenizer_init=True, progress=False, max_num_seqs=1, **options) as llm:
        config = llm.vllm_config.model_config
        return {
            "cost": asdict(model_cost(model_of(llm))),
            "vocab_size": llm.engine.vocab_size,
            "architecture": config.architecture,
            "dtype": str(config.dtype).removeprefix("torch."),
            "ops": dict(llm.engine.ops),
        }


def main() -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    json.dump(facts(json.load(sys.stdin)), out)
    out.flush()


if __name__ == "__main__":
    main()
