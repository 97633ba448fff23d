"""llama.cpp: `llama-bench` for one request, `llama-server` for many and for the first token."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

from .contestants import Figures, missing, with_peak
from .llama_server import serving
from .process import running
from .work import Job
from .worker import WARM_TOKENS


@dataclass
class LlamaCpp:
    """`folder` has the programs; `file` is a GGUF."""

    folder: Path
    file: Path
    name: str = "llama.cpp"
    version: str = ""

    @property
    def model(self) -> str:
        return self.file.name

    def check(self) -> None:
        for program in ("llama-bench", "llama-server"):
            if not (self.folder / program).is_file():
                raise missing(program, "llama-bin", str(self.folder), "the folder of llama-bench and llama-server")
        if self.file.suffix != ".gguf" or not self.file.is_file():
            raise missing("llama.cpp's model", "llama-model", str(self.file), "a .gguf file")

    def run(self, job: Job) -> Figures:
        return self._alone(job) if job["part"] == "alone" else self._together(job)

    def _alone(self, job: Job) -> Figures:
        """The server only for its first token: `llama-bench` does not tell when that came."""
        depth, length = len(job["decode"]), len(job["prefill"][1])
        prefill, size = self._bench(job, "-p", length, "-n", 0)
        decode, other = self._bench(job, "-p", 0, "-n", job["output_len"], "-d", depth)
        with serving(self.folder, self.file, job) as server:
            server.answer([job["first"]], 1)
            first_token = server.program.seconds
        sizes = [each for each in (size, other) if each is not None]
        found = {"prefill_tok_s": prefill, "decode_tok_s": decode, "first_token_s": first_token}
        return found | with_peak(job, max(sizes, default=None))

    def _bench(self, job: Job, *lengths: object) -> tuple[float, int | None]:
        """Tokens a second of one test, after its own warm-up, and the peak of memory."""
        command = [self.folder / "llama-bench", "-m", self.file, "-t", job["threads"], "-r", 1, "-o", "json", *lengths]
        with running("llama-bench", command, job["threads"]) as program:
            told = "".join(program.lines())
            try:
                (found,) = json.loads(told)
                self.version = f"{found['build_number']} ({found['build_commit']})"
                return float(found["avg_ts"]), program.peak_bytes
            except (ValueError, KeyError) as error:
                raise program.failed(f"told no rate: {told[:200]!r}") from error

    def _together(self, job: Job) -> Figures:
        found: Figures = {}
        with serving(self.folder, self.file, job) as server:
            server.answer([job["first"]], 1)
            for prompts in job["batches"]:
                server.answer(prompts, min(WARM_TOKENS, job["output_len"]))
                start = time.perf_counter()
                server.answer(prompts, job["output_len"])
                found[f"output_tok_s_{len(prompts)}"] = len(prompts) * job["output_len"] / (time.perf_counter() - start)
            return found | with_peak(job, server.program.peak_bytes)
