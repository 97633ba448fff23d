"""transformers on random weights of the same shapes, on the same device, in the same run."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from statistics import median
from typing import Any

import torch

from bestiary.api.errors import EngineError
from bestiary.bench.against_transformers import TransformersSubject
from bestiary.bench.hardware import wait
from bestiary.bench.workload import Workload

from .shapes import Shape


@contextmanager
def loaded(shape: Shape, device: str) -> Iterator[Any]:
    """A model of that shape with weights that transformers draws, freed afterwards."""
    import transformers

    fields = {name: value for name, value in shape.items() if name not in ("architectures", "model_type")}
    config = transformers.AutoConfig.for_model(shape["model_type"], **fields)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.generation_config.eos_token_id = None
    try:
        yield model.eval()
    finally:
        del model
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()


def decode_seconds(model: Any, context: int, steps: int) -> float:
    """The median token of `generate`, batch 1, after an answer that does not count."""
    subject, work = TransformersSubject(model), Workload(model.config.vocab_size)
    subject.run([work.prompt(context, 0)], 4)
    times = subject.run([work.prompt(context, 1)], steps)[0]
    return median(after - before for before, after in pairwise(times))


def queue_seconds(model: Any, count: int, length: int, output: int, device: str) -> float:
    """`generate_batch`: `count` requests of so many tokens each, submitted together."""
    from transformers import GenerationConfig

    work = Workload(model.config.vocab_size)
    config = GenerationConfig(max_new_tokens=output, do_sample=False, eos_token_id=-1, pad_token_id=0)
    model.generate_batch(inputs=[work.prompt(8, 9)], generation_config=config)
    inputs = [work.prompt(length, number) for number in range(count)]
    wait(device)
    before = time.perf_counter()
    found = model.generate_batch(inputs=inputs, generation_config=config)
    seconds = time.perf_counter() - before
    made = sum(len(each.generated_tokens) for each in found.values())
    if made != count * output:
        raise EngineError(f"transformers made {made} of {count * output} tokens", value=made, limit=count * output)
    return seconds
