"""Whole models by Triton kernels, interpreted, say what they say by torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.mark.full
def test_tokens_are_those_of_torch(said_by: Callable[[str], Any]) -> None:
    found = said_by("whole_models.py")
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
