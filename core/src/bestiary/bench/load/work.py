"""What is asked: prompts drawn by a seed, as words or as token ids, and the bytes of the requests that carry them."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from bestiary.bench.workload import Workload
from bestiary.serve.cli.chat.server import Server

Endpoint = Literal["chat", "completions"]
_PATHS = {"chat": "chat/completions", "completions": "completions"}
_TEXT = Path(__file__).parents[1] / "perplexity.txt"


@cache
def words() -> list[str]:
    """Words of the text that `bench perplexity` predicts."""
    return sorted(set(re.findall(r"\b[a-z]+\b", _TEXT.read_text(encoding="utf-8"))))


@dataclass(frozen=True, slots=True)
class Work:
    """Attributes:
    shortest, longest: words of a prompt, or tokens where `vocab_size` is given; lengths are uniform between them.
    output_len: tokens of an answer (`max_tokens`). ignore_eos: it is always as long.
    extra: further fields of every request.
    """

    model: str
    endpoint: Endpoint = "chat"
    requests: int = 100
    shortest: int = 64
    longest: int = 256
    output_len: int = 64
    seed: int = 0
    vocab_size: int | None = None
    ignore_eos: bool = True
    temperature: float = 0.0
    extra: Mapping[str, Any] = field(default_factory=dict)

    def body(self, number: int) -> dict[str, Any]:
        """The `number`-th request. Different ones share no prefix worth speaking of."""
        prompt = self._prompt(number)
        asked = {"prompt": prompt} if self.endpoint == "completions" else {
            "messages": [{"role": "user", "content": prompt}]
        }  # fmt: skip
        eos = {"ignore_eos": True} if self.ignore_eos else {}
        return {
            "model": self.model, **asked, "max_tokens": self.output_len, "temperature": self.temperature,
            "stream": True, "stream_options": {"include_usage": True}, **eos, **self.extra,
        }  # fmt: skip

    def _prompt(self, number: int) -> str | list[int]:
        chosen = random.Random(f"{self.seed}/{number}")
        length = chosen.randint(self.shortest, self.longest)
        if self.vocab_size is not None:
            return Workload(self.vocab_size, self.seed).prompt(length, number)
        return " ".join(chosen.choices(words(), k=length))

    def request(self, server: Server, number: int) -> bytes:
        """The bytes of the `number`-th request."""
        body = json.dumps(self.body(number)).encode()
        headers = {"Host": server.url.netloc, **server.headers(), "Content-Length": str(len(body))}
        head = [
            f"POST {server.path(_PATHS[self.endpoint])} HTTP/1.1",
            *(f"{name}: {text}" for name, text in headers.items()),
        ]
        return "\r\n".join([*head, "", ""]).encode("ascii") + body
