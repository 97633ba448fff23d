"""Whole models by Triton kernels, interpreted, say what they say by torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).with_name("whole_models.py")


def test_tokens_are_those_of_torch() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-W", "ignore", str(PROGRAM)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 5
    for name, runs in found.items():
        wanted, ops, backend = runs["torch"]
        assert backend == "torch"
        assert "triton" not in {ops[each] for each in ("rms_norm", "silu_and_mul", "write_kv_cache")}
        for kind, attention in (("triton", "triton"), ("exact", "triton_exact")):
            tokens, ops, backend = runs[kind]
            assert backend == attention
            assert ops["rms_norm"] == ops["rotary_embedding"] == ops["write_kv_cache"] == "triton"
            assert ops["qk_norm_rope_cache"] == "triton"
            assert (ops["linear"] == "triton") == (kind == "exact")
            for each in ("fused_experts", "grouped_experts", "add_lora", "linear_int4"):
                assert ops[each] == ("triton_exact" if kind == "exact" else "triton")
            assert tokens == wanted, (name, kind)
