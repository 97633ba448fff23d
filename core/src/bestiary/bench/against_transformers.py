"""transformers' `generate` on the weights the engine holds, as the other runtime of a comparison.

transformers reads a directory of safetensors by itself, since its names in memory are not always the checkpoint's
(experts are merged). A GGUF file's weights come through the engine's reader: the same decoded numbers in both. Both
models are in memory at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from bestiary.api.errors import UsageError, WeightsMismatch
from bestiary.engine.build import EngineBuilder
from bestiary.engine.loader.weights import open_weights

from .subject import Times

if TYPE_CHECKING:
    from bestiary.engine.loader.description import ModelDescription
    from bestiary.serve.llm import LLM


class TransformersSubject:
    """`generate`, greedy, batch 1: several prompts are answered one after another."""

    name = "transformers"

    def __init__(self, model: Any, clock: Callable[[], float] = time.perf_counter) -> None:
        self._model = model
        self._clock = clock

    def run(self, prompts: Sequence[list[int]], output_len: int) -> list[Times]:
        start = self._clock()
        return [self._one(ids, output_len, start) for ids in prompts]

    @torch.inference_mode()
    def _one(self, ids: list[int], output_len: int, start: float) -> Times:
        streamer = _TokenTimes(self._clock, start)
        tokens = torch.tensor([ids], device=self._model.device)
        self._model.generate(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=output_len,
            min_new_tokens=output_len,
            do_sample=False,
            pad_token_id=0,
            streamer=streamer,
        )
        return streamer.times


class _TokenTimes:
    """What `generate` tells of each token: the prompt comes first, and is not one."""

    def __init__(self, clock: Callable[[], float], start: float) -> None:
        self._clock, self._start, self._prompt_seen = clock, start, False
        self.times: Times = []

    def put(self, value: Any) -> None:
        if self._prompt_seen:
            self.times.append(self._clock() - self._start)
        self._prompt_seen = True

    def end(self) -> None:
        """Nothing is left to tell."""


def transformers_subject(llm: LLM) -> TransformersSubject:
    """The model of `llm` in transformers, with the same weights, dtype and device.

    Raises:
        UsageError: transformers has no such architecture, or the weights are random.
        WeightsMismatch: its names differ from the file's.
    """
    import transformers

    config = llm.vllm_config.model_config
    model_class = getattr(transformers, config.architecture, None)
    if model_class is None:
        raise UsageError(f"transformers has no {config.architecture}", field="compare", value=config.architecture)
    if llm.args.load_format == "dummy":
        raise UsageError("dummy weights cannot be compared", field="load-format", limit="a model with weights")
    model = _loaded(model_class, llm)
    model.generation_config.eos_token_id = None
    return TransformersSubject(model.to(llm.vllm_config.device_config.device).eval())


def _loaded(model_class: Any, llm: LLM) -> Any:
    config, description = llm.vllm_config.model_config, EngineBuilder(llm.args).description
    if description.source.kind == "directory" and llm.args.load_format in ("auto", "safetensors"):
        with _without_bars():
            return model_class.from_pretrained(
                description.source.root, config=config.hf_config, dtype=config.dtype, use_safetensors=True,
                local_files_only=True,
            )  # fmt: skip
    model = model_class._from_config(config.hf_config, dtype=config.dtype)
    _fill(model, llm, description)
    return model


@contextmanager
def _without_bars() -> Iterator[None]:
    """transformers' progress bars would stand in the way of ours."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _fill(model: Any, llm: LLM, description: ModelDescription) -> None:
    stream = open_weights(
        description.source, load_format=llm.args.load_format, gguf_declaration=description.gguf, allow_nonfinite=True
    )
    held = dict(model.named_parameters(remove_duplicate=False))
    missing = set(held) - {"lm_head.weight"} if model.config.tie_word_embeddings else set(held)
    unknown = []
    with torch.no_grad():
        for name, tensor in stream:
            if name not in held:
                unknown.append(name)
                continue
            held[name].copy_(tensor)
            missing.discard(name)
    if unknown or missing:
        raise WeightsMismatch(
            "transformers names this model's weights differently",
            details=[*(f"unknown: {name}" for name in unknown), *(f"missing: {name}" for name in sorted(missing))],
        )
