"""Who takes part: each does a part of a round in a process that starts and ends with it."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from bestiary.api.errors import UsageError

from .process import running
from .work import Job

WORKER = Path(__file__).with_name("worker.py")

Figures = dict[str, float]
"""``prefill_tok_s``, ``decode_tok_s``, ``first_token_s``, ``peak_bytes_alone``; ``output_tok_s_16``,
``peak_bytes_together`` …"""


class Contestant(Protocol):
    """A runtime with a model.

    Attributes:
        version: as it says itself; "" before it ran. model: the name of its file or folder, without where it lies.
    """

    @property
    def name(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def version(self) -> str: ...

    def check(self) -> None:
        """Raises `UsageError`: a program or file of it is missing."""
        ...

    def run(self, job: Job) -> Figures:
        """Raises `EngineError`: it failed."""
        ...


@dataclass
class Library:
    """A Python library, in `worker.py` under the Python that has it.

    Attributes:
        place: of its model. options: what else `worker.py` hands on.
    """

    name: str
    place: str
    python: str = sys.executable
    options: Mapping[str, Any] = field(default_factory=dict)
    version: str = ""

    @property
    def model(self) -> str:
        return Path(self.place).name

    def check(self) -> None:
        """Bestiary finds its models by itself, by name as well."""
        if self.name != "bestiary" and not Path(self.place).is_dir():
            raise missing(f"the model of {self.name}", self.name, self.place, "a folder with a model")
        if not Path(self.python).is_file():
            raise missing(f"the Python of {self.name}", f"{self.name}-python", self.python, "a Python that has it")

    def run(self, job: Job) -> Figures:
        given = json.dumps({**job, "model": self.place, "options": dict(self.options)})
        command = [self.python, "-P", str(WORKER), self.name]
        found: Figures = {}
        with running(self.name, command, job["threads"], given) as program:
            for line in program.lines():
                event = json.loads(line)
                if "first_token" in event:
                    self.version = event["first_token"]
                    first_token = program.seconds
                else:
                    found = event["figures"]
            if not found:
                raise program.failed("told no figures")
            if job["part"] == "alone":
                found["first_token_s"] = first_token
            return found | with_peak(job, program.peak_bytes)


def with_peak(job: Job, peak_bytes: int | None) -> Figures:
    return {} if peak_bytes is None else {f"peak_bytes_{job['part']}": peak_bytes}


def missing(name: str, option: str, value: str, needed: str) -> UsageError:
    return UsageError(f"{name} is not there", field=option, value=value, fix=f"--{option} names {needed}")
