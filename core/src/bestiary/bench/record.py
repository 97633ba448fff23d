"""The record of one run: figures, and everything needed to read or repeat them. No host, no path."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import bestiary

SCHEMA = 1


def environment() -> dict[str, Any]:
    """Versions, and the commit where this runs from a checkout."""
    return {
        "bestiary": bestiary.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
    }


def load_average() -> float | None:
    """Processes that ran or waited over the last minute; None where the system does not say."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def new_record(kind: str, model: str, **parts: Any) -> dict[str, Any]:
    """A record of `kind`, such as "latency" or "serve"; `parts` are its further sections, in order."""
    made = datetime.now(UTC).strftime("%Y-%m-%d")
    name = Path(model).name  # a path says where it lay, which is nobody's business
    return {"schema": SCHEMA, "kind": kind, "date": made, "model": name, "environment": environment(), **parts}


def as_json(record: dict[str, Any]) -> str:
    """Indented, floats to six significant digits."""
    return json.dumps(_rounded(record), indent=1, ensure_ascii=False) + "\n"


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _commit() -> str | None:
    """The checkout's commit, marked where tracked files differ from it; None for an installed package."""
    here = Path(__file__).parent
    answers = []
    for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no", "--", "."]):
        try:
            done = subprocess.run(["git", *command], cwd=here, capture_output=True, text=True, timeout=10)
        except (FileNotFoundError, subprocess.TimeoutExpired):
            return None
        if done.returncode:
            return None
        answers.append(done.stdout.strip())
    return answers[0] + (" and changes" if answers[1] else "")
