"""A contestant that is a Python library: reads a job from stdin, tells of it on stdout in JSON lines.

Run as a program by whichever Python has the library, so it needs nothing else: `worker.py LIBRARY`. Every library does
the same in the same order, greedily and with the end of text ignored:

1. a short prompt to its first token, told at once: ``{"first_token": version}``;
2. what the job's part asks for, warmed up and then measured: ``{"figures": {…}}``.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

Answer = Callable[[list[list[int]], int], list[int]]
"""Prompts submitted together, and new tokens of each → how many each answer has."""
WARM_TOKENS = 8


def bestiary(job: dict[str, Any]) -> tuple[str, Answer]:
    import torch

    from bestiary import LLM, SamplingParams, __version__

    torch.set_num_threads(job["threads"])
    engine = {
        "max_model_len": job["context"],
        "max_num_seqs": job["most"],
        "enable_prefix_caching": False,
        "skip_tokenizer_init": True,
        "progress": False,
    }
    llm = LLM(job["model"], **{**engine, **job["options"]})

    def answer(prompts: list[list[int]], new: int) -> list[int]:
        params = SamplingParams(temperature=0, max_tokens=new, ignore_eos=True, detokenize=False)
        outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
        return [len(output.outputs[0].token_ids) for output in outputs]

    return __version__, answer


def transformers(job: dict[str, Any]) -> tuple[str, Answer]:
    """`generate`; several prompts are one batch, filled up on the left."""
    import torch

    os.environ["HF_HUB_OFFLINE"] = "1"
    library = importlib.import_module("transformers")
    torch.set_num_threads(job["threads"])
    dtype = getattr(torch, job["options"]["dtype"])
    model = library.AutoModelForCausalLM.from_pretrained(job["model"], dtype=dtype, local_files_only=True).eval()
    model.generation_config.eos_token_id = None

    def answer(prompts: list[list[int]], new: int) -> list[int]:
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(each)) + each for each in prompts])
        mask = torch.tensor([[0] * (width - len(each)) + [1] * len(each) for each in prompts])
        with torch.inference_mode():
            found = model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=new, min_new_tokens=new, do_sample=False,
                pad_token_id=0,
            )  # fmt: skip
        return [found.shape[1] - width] * len(prompts)

    return library.__version__, answer


def openvino(job: dict[str, Any]) -> tuple[str, Answer]:
    """One request at a time by `LLMPipeline`, many by `ContinuousBatchingPipeline`."""
    import numpy as np

    library, core = importlib.import_module("openvino_genai"), importlib.import_module("openvino")
    device = {"INFERENCE_NUM_THREADS": job["threads"], **job["options"]}

    def tensor(values: list[int]) -> Any:
        return core.Tensor(np.array([values], dtype=np.int64))

    def config(new: int) -> Any:
        made = library.GenerationConfig()
        made.max_new_tokens = made.min_new_tokens = new
        made.ignore_eos, made.do_sample, made.apply_chat_template = True, False, False
        return made

    if job["part"] == "alone":
        single = library.LLMPipeline(job["model"], "CPU", ATTENTION_BACKEND="SDPA", **device)

        def answer(prompts: list[list[int]], new: int) -> list[int]:
            inputs = library.TokenizedInputs(tensor(prompts[0]), tensor([1] * len(prompts[0])))
            return [len(single.generate(inputs, config(new)).tokens[0])]
    else:
        schedule = library.SchedulerConfig()
        schedule.max_num_seqs, schedule.cache_size, schedule.enable_prefix_caching = job["most"], 1, False
        schedule.max_num_batched_tokens = 2048
        many = library.ContinuousBatchingPipeline(job["model"], schedule, "CPU", device, {})

        def answer(prompts: list[list[int]], new: int) -> list[int]:
            outputs = many.generate([tensor(ids) for ids in prompts], [config(new)] * len(prompts))
            return [len(output.m_generation_ids[0]) for output in outputs]

    return library.__version__, answer


def seconds(answer: Answer, prompts: list[list[int]], new: int) -> float:
    """That it took. Raises ValueError: an answer has another length than asked for."""
    start = time.perf_counter()
    lengths = answer(prompts, new)
    took = time.perf_counter() - start
    if lengths != [new] * len(prompts):
        raise ValueError(f"answers of {lengths} tokens instead of {new}")
    return took


def alone(answer: Answer, job: dict[str, Any]) -> dict[str, float]:
    """Decoding is what more tokens than one take longer than one."""
    warm, measured = job["prefill"]
    seconds(answer, [warm], 1)
    prefill = seconds(answer, [measured], 1)
    seconds(answer, [job["first"]], WARM_TOKENS)
    new, prompt = job["output_len"], [job["decode"]]
    first = seconds(answer, prompt, 1)
    decode = seconds(answer, prompt, new) - first
    return {"prefill_tok_s": len(measured) / prefill, "decode_tok_s": (new - 1) / decode}


def together(answer: Answer, job: dict[str, Any]) -> dict[str, float]:
    """New tokens over the time of everything, prompts included."""
    figures, new = {}, job["output_len"]
    for prompts in job["batches"]:
        seconds(answer, prompts, min(WARM_TOKENS, new))
        figures[f"output_tok_s_{len(prompts)}"] = len(prompts) * new / seconds(answer, prompts, new)
    return figures


def tell(out: TextIO, **event: Any) -> None:
    out.write(json.dumps(event) + "\n")
    out.flush()


def main() -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is not ours to tell
    job = json.load(sys.stdin)
    version, answer = {"bestiary": bestiary, "transformers": transformers, "openvino": openvino}[sys.argv[1]](job)
    seconds(answer, [job["first"]], 1)
    tell(out, first_token=version)
    tell(out, figures=(alone if job["part"] == "alone" else together)(answer, job))


if __name__ == "__main__":
    main()
