"""A Llama that behaves until it is provoked: by a token among those it computes, or by the file `$CHAOS_FILE`.

A token that provokes is given in a prompt (then the prompt's step fails) or drawn because its request asks for it with
`logit_bias` (then a later step fails). `PROVOCATIONS` says which token does what. While the file exists, every step
does what is written in it.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import time
from pathlib import Path
from typing import Any

import torch

from llama_plugin.llama import LlamaForCausalLM

PROVOCATIONS = {
    500: "raise", 501: "raise once", 502: "memory", 503: "eat", 504: "shape", 505: "nan", 506: "inf", 507: "-inf",
    508: "sleep", 509: "hold", 510: "exit", 511: "segv",
}  # fmt: skip
_ROWS = {"nan": float("nan"), "inf": float("inf"), "-inf": -float("inf")}
_MARK = -(2.0**40)


class ChaosForCausalLM(LlamaForCausalLM):
    provoked_before = 0

    def forward(self, input_ids: torch.Tensor, positions: torch.Tensor, *others: Any, **more: Any) -> Any:
        asked = [PROVOCATIONS[token] for token in input_ids.tolist() if token in PROVOCATIONS]
        control = Path(os.environ.get("CHAOS_FILE", "")).resolve()
        if control.is_file():
            asked.append(control.read_text().strip())
        for what in asked:
            self.provoked(what)
        hidden = super().forward(input_ids, positions, *others, **more)
        if "shape" in asked:
            return hidden[:-1]
        for row, token in enumerate(input_ids.tolist()):
            if PROVOCATIONS.get(token) in _ROWS:
                hidden[row] = _MARK * token
        return hidden

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        logits = super().compute_logits(hidden_states)
        for token, what in PROVOCATIONS.items():
            if logits is not None and what in _ROWS:
                logits[hidden_states[:, 0] == _MARK * token] = _ROWS[what]
        return logits

    def provoked(self, what: str) -> None:
        if what == "raise":
            raise ValueError("provoked, with a word that is no Unicode: \ud800")
        if what == "raise once":
            self.provoked_before += 1
            if self.provoked_before % 2:
                raise ValueError("provoked once")
        if what == "memory":
            raise MemoryError
        if what == "eat":
            eat_memory()
        if what == "sleep":
            while True:
                time.sleep(1)
        if what == "hold":
            Path(os.environ["CHAOS_FILE"]).with_name("held").touch()
            ctypes.PyDLL(None).sleep(3600)  # and nobody else has the interpreter's lock meanwhile
        if what == "exit":
            os._exit(9)
        if what == "segv":
            signal.signal(signal.SIGSEGV, signal.SIG_DFL)
            ctypes.string_at(0)


def eat_memory() -> None:
    """Take more than the process may have."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), before[1]))
    try:
        torch.zeros(1 << 30, dtype=torch.uint8).fill_(1)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
