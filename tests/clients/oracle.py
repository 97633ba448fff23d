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


ANSWERS = {"chat": chat, "complete": complete, "embed": embed}


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
