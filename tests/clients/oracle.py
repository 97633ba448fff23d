"""What the clients' answers are held against: the offline API, asked through standard input, a JSON object a line.

A program of the server's environment: ``python -m tests.clients.oracle FOLDER``. It writes the tests' model, T0 with a
chat template that calls tools, into FOLDER, says so with a line, and then answers each line with one.
"""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

from tests.trust.support.t0 import write_t0

from bestiary import LLM, SamplingParams

TEMPLATE = Path(__file__).with_name("template.jinja")
PLAIN = {"dtype": "float32", "progress": False}


@cache
def model(name: str, runner: str) -> LLM:
    return LLM(name, runner=runner, **PLAIN)


def chat(name: str, messages: Any, **sampling: Any) -> list[dict[str, Any]]:
    """Every answer's text and token ids."""
    (output,) = model(name, "generate").chat(messages, SamplingParams(**sampling), use_tqdm=False)
    return [{"text": each.text, "token_ids": each.token_ids} for each in output.outputs]


def complete(name: str, prompt: str, **sampling: Any) -> list[dict[str, Any]]:
    (output,) = model(name, "generate").generate(prompt, SamplingParams(**sampling), use_tqdm=False)
    return [{"text": each.text, "token_ids": each.token_ids} for each in output.outputs]


def embed(name: str, texts: list[str]) -> list[list[float]]:
    return [list(each.outputs.embedding) for each in model(name, "pooling").embed(texts, use_tqdm=False)]


@cache
def peer(name: str) -> tuple[Any, Any]:
    """A tokenizer of ours, and transformers' model, which reads the GGUF file by itself."""
    import torch
    from transformers import AutoModelForCausalLM

    from bestiary.engine.arguments import EngineArgs
    from bestiary.engine.build import EngineBuilder

    made = model(name, "generate")
    (file,) = EngineBuilder(EngineArgs(model=name)).description.source.weight_files
    file = Path(file)
    theirs = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    return made.get_tokenizer(), theirs.eval()


def loglikelihood(name: str, pairs: list[tuple[str, str]]) -> list[tuple[float, bool]]:
    """By transformers: the log-probability of each second text after the first, and whether greedy decoding says it."""
    import torch

    tokenizer, theirs = peer(name)
    found = []
    for context, continuation in pairs:
        start = len(tokenizer.encode(context, add_special_tokens=False))
        ids = tokenizer.encode(context + continuation, add_special_tokens=False)
        with torch.inference_mode():
            logprobs = theirs(torch.tensor([ids])).logits[0].log_softmax(-1)[start - 1 : -1]
        wanted = torch.tensor(ids[start:])
        own = logprobs.gather(-1, wanted[:, None]).sum().item()
        found.append((own, bool((logprobs.argmax(-1) == wanted).all())))
    return found


def greedy(name: str, prompts: list[str], until: list[str], max_tokens: int) -> list[str]:
    """By transformers: each prompt continued up to the first of the stop strings."""
    import torch

    tokenizer, theirs = peer(name)
    found = []
    for prompt in prompts:
        ids = torch.tensor([tokenizer.encode(prompt, add_special_tokens=False)])
        given = {"do_sample": False, "max_new_tokens": max_tokens, "pad_token_id": 0}
        with torch.inference_mode():
            text = tokenizer.decode(
                theirs.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **given)[0, ids.shape[1] :].tolist()
            )
        found.append(text[: min((at for at in map(text.find, until) if at >= 0), default=len(text))])
    return found


ANSWERS = {"chat": chat, "complete": complete, "embed": embed, "loglikelihood": loglikelihood, "greedy": greedy}


def main(folder: Path) -> None:
    say, sys.stdout = sys.stdout, sys.stderr
    write_t0(folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE.read_text("utf-8"), "utf-8")
    print("ready", file=say, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(ANSWERS[asked.pop("ask")](**asked)), file=say, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
