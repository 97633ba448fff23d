"""The oracle: the same engine offline, one request at a time, without prefix cache and without chunks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bestiary import LLM, SamplingParams
from bestiary.api.outputs import CompletionOutput


class Golden:
    """Answers, each made once."""

    def __init__(self, model: Path | str, **options: Any) -> None:
        plain = {"dtype": "float32", "progress": False, "enable_prefix_caching": False, "max_num_seqs": 1}
        self._llm = LLM(str(model), **(plain | options))
        self._known: dict[tuple[object, ...], list[CompletionOutput]] = {}

    @property
    def llm(self) -> LLM:
        return self._llm

    def outputs(self, prompt: Sequence[int], params: SamplingParams, lora: str | None = None) -> list[CompletionOutput]:
        """All answers to a prompt of ids. A request without seed is not asked of an oracle."""
        key = (tuple(prompt), repr(params), lora)
        if key not in self._known:
            asked = [{"prompt_token_ids": list(prompt)}]
            (output,) = self._llm.generate(asked, params, use_tqdm=False, lora_request=lora)
            self._known[key] = output.outputs
        return self._known[key]

    def tokens(self, prompt: Sequence[int], params: SamplingParams) -> list[int]:
        return self.outputs(prompt, params)[0].token_ids

    def close(self) -> None:
        self._llm.close()
