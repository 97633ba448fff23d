"""What schemathesis is told of this API: when a well-formed request may be refused all the same."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import schemathesis

SEMANTIC = runpy.run_path(str(Path(__file__).resolve().parents[2] / "core" / "tests" / "openai" / "semantic.py"))


@schemathesis.check
def refused_for_a_reason(ctx: Any, response: Any, case: Any) -> None:
    """A well-formed request that is refused breaks a rule that no schema can state."""
    if response.status_code != 400 or case.meta is None or not case.meta.generation.mode.is_positive:
        return
    error = response.json()["error"]
    if error["code"] not in SEMANTIC["CODES"] and error["param"] not in SEMANTIC["TOGETHER"]:
        raise AssertionError(f"{error['code']} at {error['param']}: {error['message']}")
