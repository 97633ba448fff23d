"""From the options of `bench peers` to its work, and to the peers that they name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bestiary.api.errors import UsageError
from bestiary.bench.common import lengths

from .contestants import Contestant, Library
from .llama_cpp import LlamaCpp
from .work import PeersWork

_SAME = ("rounds", "seed", "prefill_len", "input_len", "output_len", "batch_output_len")


def peers_work(options: Mapping[str, Any]) -> PeersWork:
    shortest, longest = lengths(options["batch_input_len"], "--batch-input-len")
    same = {name: options[name] for name in _SAME}
    return PeersWork(
        threads=options["threads"] or os.cpu_count() or 1,
        requests=tuple(count for count in options["num_prompts"] if count),
        shortest=shortest,
        longest=longest,
        **same,
    )


def named_peers(options: Mapping[str, Any]) -> list[Contestant]:
    """Raises `UsageError`: an option says something of a peer that none names."""
    found: list[Contestant] = []
    if options["llama_bin"] is not None:
        found.append(LlamaCpp(options["llama_bin"], options["llama_model"] or Path(options["model"])))
    elif options["llama_model"] is not None:
        raise UsageError("llama.cpp has a model and no programs", field="llama-model", fix="give --llama-bin too")
    if options["transformers"] is not None:
        dtype = {"dtype": options["transformers_dtype"]}
        found.append(Library("transformers", options["transformers"], options=dtype))
    if options["openvino"] is not None:
        python = {} if options["openvino_python"] is None else {"python": options["openvino_python"]}
        found.append(Library("openvino", options["openvino"], **python))
    elif options["openvino_python"] is not None:
        raise UsageError("OpenVINO has a Python and no model", field="openvino-python", fix="give --openvino too")
    return found
